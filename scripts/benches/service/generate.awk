# Prints a C file of so many functions (1,000 if not said), so that a compiler has something to do.
BEGIN {
    if (!functions) functions = 1000
    if (part == 1) print "int main(void) { return 0; }"
    for (n = 0; n < functions; n++) {
        printf "unsigned f%d_%d(unsigned *a, unsigned n) {\n", part, n
        printf "    unsigned sum = %d;\n", n * 7919 + part
        print "    for (unsigned i = 0; i < n; i++) {"
        for (k = 1; k <= 8; k++)
            printf "        a[i] = (a[i] ^ %du) * %du + (sum >> %d); sum += a[i] %% %du;\n", n * k + 3, 2 * k + 2 * n + 1, k, n + k + 2
        print "    }\n    return sum;\n}"
    }
}

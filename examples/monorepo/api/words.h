/* Counts the words of a text. */
#ifndef WORDS_H
#define WORDS_H

#include <stddef.h>

#define WORDS_MAX 256
#define WORD_BYTES_MAX 32

struct word {
    char text[WORD_BYTES_MAX];
    unsigned times;
};

struct words {
    size_t count;
    struct word word[WORDS_MAX];
};

/* Words are runs of letters and digits in lower case, the most frequent first and equals in the
 * order of their first appearance. Longer words are cut; words after WORDS_MAX are left out. */
void words_count(struct words *words, const char *text);

/* Turns a query value ("to+be%21") into text, in place. */
void words_decode(char *text);

#endif

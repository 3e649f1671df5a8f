#include "words.h"

#undef NDEBUG
#include <assert.h>
#include <stdio.h>
#include <string.h>

static void counts_words_most_frequent_first(void)
{
    struct words words;

    words_count(&words, "To be, or not to be: that is the question. Be!");
    assert(words.count == 8);
    assert(strcmp(words.word[0].text, "be") == 0 && words.word[0].times == 3);
    assert(strcmp(words.word[1].text, "to") == 0 && words.word[1].times == 2);
    assert(strcmp(words.word[2].text, "or") == 0 && words.word[2].times == 1);
}

static void an_empty_text_has_no_words(void)
{
    struct words words;

    words_count(&words, " ,.;");
    assert(words.count == 0);
}

static void a_long_word_is_cut(void)
{
    struct words words;

    words_count(&words, "abcdefghijklmnopqrstuvwxyz0123456789");
    assert(words.count == 1 && strlen(words.word[0].text) == WORD_BYTES_MAX - 1);
}

static void decodes_a_query_value(void)
{
    char text[] = "to+be%21%zz%";

    words_decode(text);
    assert(strcmp(text, "to be!%zz%") == 0);
}

int main(void)
{
    counts_words_most_frequent_first();
    an_empty_text_has_no_words();
    a_long_word_is_cut();
    decodes_a_query_value();
    puts("4 tests passed");
    return 0;
}

#include "words.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

static void add(struct words *words, const char *text)
{
    size_t i = 0;

    while (i < words->count && strcmp(words->word[i].text, text) != 0)
        i++;
    if (i == WORDS_MAX)
        return;
    if (i == words->count) {
        strcpy(words->word[i].text, text);
        words->word[i].times = 0;
        words->count++;
    }
    words->word[i].times++;
    /* All before it are in order, so it moves past the less frequent ones. */
    for (; i > 0 && words->word[i - 1].times < words->word[i].times; i--) {
        struct word before = words->word[i - 1];

        words->word[i - 1] = words->word[i];
        words->word[i] = before;
    }
}

void words_count(struct words *words, const char *text)
{
    char word[WORD_BYTES_MAX];
    size_t length = 0;

    words->count = 0;
    for (;; text++) {
        if (isalnum((unsigned char)*text)) {
            if (length < sizeof word - 1)
                word[length++] = (char)tolower((unsigned char)*text);
            continue;
        }
        if (length > 0) {
            word[length] = '\0';
            add(words, word);
            length = 0;
        }
        if (*text == '\0')
            return;
    }
}

void words_decode(char *text)
{
    char *to = text;

    for (; *text != '\0'; text++, to++) {
        if (*text == '%' && isxdigit((unsigned char)text[1]) && isxdigit((unsigned char)text[2])) {
            char hex[] = {text[1], text[2], '\0'};
            *to = (char)strtol(hex, NULL, 16);
            text += 2;
        } else {
            *to = *text == '+' ? ' ' : *text;
        }
    }
    *to = '\0';
}

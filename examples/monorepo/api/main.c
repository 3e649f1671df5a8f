/* Answers /health and /count?text=… on a port; without a port it counts the words of its input. */
#include "words.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#define REQUEST_BYTES_MAX 8192

static void print_words(FILE *out, const char *text)
{
    struct words words;

    words_count(&words, text);
    for (size_t i = 0; i < words.count; i++)
        fprintf(out, "%u %s\n", words.word[i].times, words.word[i].text);
}

static void respond(FILE *out, const char *path, char *text)
{
    if (strcmp(path, "/health") == 0) {
        fprintf(out, "HTTP/1.0 200 OK\r\n\r\nok %s\n", VERSION);
    } else if (strcmp(path, "/count") == 0 && text != NULL) {
        fputs("HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\n", out);
        words_decode(text);
        print_words(out, text);
    } else {
        fputs("HTTP/1.0 404 Not Found\r\n\r\ntry /health or /count?text=to+be+or+not+to+be\n", out);
    }
}

static void serve_one(int client)
{
    char request[REQUEST_BYTES_MAX], path[REQUEST_BYTES_MAX];
    struct timeval limit = {.tv_sec = 5};
    ssize_t length;
    char *query, *text;
    FILE *out;

    setsockopt(client, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    length = recv(client, request, sizeof request - 1, 0);
    out = fdopen(client, "w");
    if (out == NULL) {
        close(client);
        return;
    }
    request[length > 0 ? length : 0] = '\0';
    if (sscanf(request, "GET %8191s", path) == 1) {
        query = strchr(path, '?');
        if (query != NULL)
            *query++ = '\0';
        text = query != NULL && strncmp(query, "text=", 5) == 0 ? query + 5 : NULL;
        respond(out, path, text);
    }
    fclose(out);
}

static int serve(int port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((unsigned short)port)};
    int listener = socket(AF_INET, SOCK_STREAM, 0), yes = 1;

    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) != 0 || listen(listener, 64) != 0) {
        perror("api: listen");
        return 1;
    }
    printf("api %s listens on port %d\n", VERSION, port);
    fflush(stdout);
    for (;;) {
        int client = accept(listener, NULL, NULL);

        if (client >= 0)
            serve_one(client);
    }
}

static void stop(int signal)
{
    (void)signal;
    _exit(0);
}

int main(int argc, char **argv)
{
    static char text[1 << 20];

    /* As process 1 of a container we get no default signal handling. */
    signal(SIGTERM, stop);
    signal(SIGPIPE, SIG_IGN);
    if (argc > 1)
        return serve(atoi(argv[1]));
    text[fread(text, 1, sizeof text - 1, stdin)] = '\0';
    print_words(stdout, text);
    return 0;
}

/* Settings of the stand-ins, and what both of them need to say what went wrong. */
#ifndef FAKE_SETTINGS_H
#define FAKE_SETTINGS_H

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fake_gpu.h"

static inline long fake_number(const char *variable, long otherwise) {
    const char *text = getenv(variable);
    return text != NULL && text[0] != '\0' ? strtol(text, NULL, 10) : otherwise;
}

/* Whether a variable such as "allreduce:3,send:*:99" names the `nth` call (from 1) of `what`: the
 * code behind it, or `otherwise` where it gives none; -1 if it does not. */
static inline int fake_due(const char *variable, const char *what, long nth, int otherwise) {
    const char *entry = getenv(variable);
    size_t length = strlen(what);
    while (entry != NULL && entry[0] != '\0') {
        if (strncmp(entry, what, length) == 0 && entry[length] == ':') {
            const char *place = entry + length + 1;
            char *end = (char *)place + 1;
            bool due = place[0] == '*' || strtol(place, &end, 10) == nth;
            if (due) {
                return *end == ':' ? (int)strtol(end + 1, NULL, 10) : otherwise;
            }
        }
        entry = strchr(entry, ',');
        entry = entry != NULL ? entry + 1 : NULL;
    }
    return -1;
}

#ifdef FAKE_MISUSE
_Noreturn void fake_misuse(const char *library, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "stand-in for %s: MISUSE: ", library);
    vfprintf(stderr, format, arguments);
    fprintf(stderr, "\n");
    va_end(arguments);
    abort();
}
#endif

#endif

/* Test support: an all-gather of the caller's own, through files of a folder. check.h includes it.
 */
#ifndef GATHER_H
#define GATHER_H

/* Longest that a rank may take to come to a gather. */
#define GATHER_LIMIT_S 40.0

/* The ranks of one world have a folder of their own, or go on in it where the last start ended. */
struct file_gather {
    const char *folder;
    int rank;
    int size;
    int round;
};

static inline int32_t gather_by_files(void *user_data, const void *src, void *dst, size_t bytes) {
    struct file_gather *gather = (struct file_gather *)user_data;
    char name[256];
    char draft[256];
    int round = gather->round++;
    snprintf(draft, sizeof draft, "%s/draft-%d", gather->folder, gather->rank);
    snprintf(name, sizeof name, "%s/gather-%d-%d", gather->folder, round, gather->rank);
    FILE *file = fopen(draft, "w");
    if (file == NULL || fwrite(src, 1, bytes, file) != bytes || fclose(file) != 0 ||
        rename(draft, name) != 0) {
        return 1;
    }
    for (int rank = 0; rank < gather->size; rank++) {
        snprintf(name, sizeof name, "%s/gather-%d-%d", gather->folder, round, rank);
        double end = seconds() + GATHER_LIMIT_S;
        while ((file = fopen(name, "r")) == NULL) {
            if (seconds() > end) {
                return 2;
            }
            sleep_ms(5);
        }
        size_t got = fread((unsigned char *)dst + (size_t)rank * bytes, 1, bytes, file);
        fclose(file);
        if (got != bytes) {
            return 3;
        }
    }
    return 0;
}

#endif

#include "tests/unit/storage/log_bench.h"

TestSuite(log_file, .init = path_make, .fini = path_remove, .timeout = 300);

/* --- the file --- */

Test(log_file, refuses_what_it_does_not_understand)
{
    struct log_host h;
    char bytes[65536];
    host_init(&h, path, DISK, "pool");
    open_ok(&h);
    cr_assert(host_close(&h));
    struct stat st;
    cr_assert_eq(stat(path, &st), 0);
    cr_assert_eq(st.st_mode & 0777, 0600);
    cr_assert_eq(st.st_size, (off_t)(CAIRN_DATA_OFFSET + DISK));

    h.o.disk_bytes = 2 * DISK;
    cr_assert_eq(host_open(&h), CAIRN_INVAL);
    cr_assert(strstr(h.err, "holds a log of") && strstr(h.err, path), "%s", h.err);
    h.o.disk_bytes = MIB;
    cr_assert_eq(host_open(&h), CAIRN_INVAL);
    cr_assert(strstr(h.err, "32 MiB"), "%s", h.err);
    h.o.disk_bytes = DISK;

    cr_assert_eq(truncate(path, (off_t)DISK), 0);
    cr_assert_eq(host_open(&h), CAIRN_INVAL);
    cr_assert(strstr(h.err, "truncated"), "%s", h.err);

    int fd = open(path, O_RDWR | O_TRUNC);
    memset(bytes, 'x', sizeof bytes);
    cr_assert_eq(write(fd, bytes, sizeof bytes), (ssize_t)sizeof bytes);
    cr_assert_eq(host_open(&h), CAIRN_INVAL);
    cr_assert(strstr(h.err, "not a cairn log"), "%s", h.err);
    cr_assert_eq(lseek(fd, 0, SEEK_END), (off_t)sizeof bytes);
    cr_assert_eq(pread(fd, bytes, 1, 5000), 1);
    cr_assert_eq(bytes[0], 'x');
    close(fd);

    h.o.path = "/var/tmp";
    cr_assert_eq(host_open(&h), CAIRN_INVAL);
    cr_assert(strstr(h.err, "not a regular file"), "%s", h.err);
    h.o.path = "/nowhere/at/all";
    cr_assert_eq(host_open(&h), CAIRN_NOTFOUND);
    host_fini(&h);
}

static void super_edit(struct bench *b, void (*edit)(struct cairn_super_disk *s))
{
    for (uint64_t off = 0; off < 8192; off += 4096) {
        struct cairn_super_disk s;
        cairn_sim_peek(b->sim, off, &s, sizeof s);
        edit(&s);
        s.check = cairn_hash64(&s, sizeof s - 8);
        cairn_sim_poke(b->sim, off, &s, sizeof s);
    }
}

static void other_format(struct cairn_super_disk *s)
{
    s->format = 9;
}

static void other_page(struct cairn_super_disk *s)
{
    s->format = CAIRN_FORMAT_VERSION;
    s->page_size = 65536;
}

Test(log_file, refuses_other_versions_and_other_pages)
{
    struct bench b;
    bench_init(&b);
    open_ok(&b.h);
    cr_assert(host_close(&b.h));
    super_edit(&b, other_format);
    cr_assert_eq(host_open(&b.h), CAIRN_VERSION);
    cr_assert(strstr(b.h.err, "another format version"), "%s", b.h.err);
    super_edit(&b, other_page);
    cr_assert_eq(host_open(&b.h), CAIRN_VERSION);
    cr_assert(strstr(b.h.err, "pages of 65536"), "%s", b.h.err);
    bench_fini(&b);
}

Test(log_file, a_second_opening_is_refused_in_a_sentence)
{
    struct log_host a, b;
    host_init(&a, path, DISK, "pool");
    host_init(&b, path, DISK, "pool");
    b.o.lock_wait_ns = 50 * CAIRN_NS_PER_MS;
    open_ok(&a);
    cr_assert_eq(host_open(&b), CAIRN_LOCKED);
    cr_assert(strstr(b.err, "another process (pid"), "%s", b.err);
    pid_t child = fork();
    if (child == 0)
        _exit(host_open(&b) == CAIRN_LOCKED ? 0 : 1);
    int status;
    waitpid(child, &status, 0);
    cr_assert_eq(status, 0);
    cr_assert(host_close(&a));
    open_ok(&b);
    cr_assert(host_close(&b));
    host_fini(&a);
    host_fini(&b);
}

/* A worker that an engine has forked lives on when the engine is killed. */
Test(log_file, a_child_of_a_killed_process_does_not_keep_the_lock)
{
    for (int e = 0; e < 2; e++) {
        if (!runs_here(engines[e]))
            continue;
        int ready[2], grandchild;
        cr_assert_eq(pipe(ready), 0);
        pid_t owner = fork();
        if (owner == 0) {
            struct log_host h;
            host_init(&h, path, DISK, engines[e]);
            if (host_open(&h) != CAIRN_OK || host_put(&h, 1, 5000) != CAIRN_OK ||
                host_sync(&h) != CAIRN_OK)
                _exit(1);
            pid_t worker = fork();
            if (worker == 0) {
                pause();
                _exit(0);
            }
            if (write(ready[1], &worker, sizeof worker) < 0)
                _exit(1);
            raise(SIGKILL);
        }
        cr_assert_eq(read(ready[0], &grandchild, sizeof grandchild), (ssize_t)sizeof grandchild);
        waitpid(owner, NULL, 0);
        struct log_host h;
        host_init(&h, path, DISK, engines[e]);
        cairn_status st = host_open(&h);
        kill(grandchild, SIGKILL);
        cr_assert_eq(st, CAIRN_OK, "%s: %s", engines[e], h.err);
        cr_assert_eq(host_get(&h, 1), CAIRN_OK);
        cr_assert(host_close(&h));
        host_fini(&h);
        close(ready[0]);
        close(ready[1]);
        unlink(path);
    }
}

Test(log_file, a_file_truncated_or_replaced_under_it_is_noticed)
{
    for (int replaced = 0; replaced < 2; replaced++) {
        struct log_host h;
        host_init(&h, path, DISK, "pool");
        h.o.errors_max = 1000;
        open_ok(&h);
        cr_assert_eq(host_put(&h, 1, 50000), CAIRN_OK);
        if (replaced) {
            char aside[160];
            snprintf(aside, sizeof aside, "%s.aside", path);
            cr_assert_eq(rename(path, aside), 0);
            close(open(path, O_CREAT | O_RDWR, 0600));
            unlink(aside);
            cr_assert_eq(host_get(&h, 1), CAIRN_OK, "the bytes are still there");
        } else {
            cr_assert_eq(truncate(path, 4096), 0);
            cr_assert_neq(host_get(&h, 1), CAIRN_OK);
        }
        cr_assert_eq(host_sync(&h), CAIRN_IO);
        cr_assert(strstr(h.off, replaced ? "replaced" : "truncated"), "%s", h.off);
        cr_assert_eq(host_sync(&h), CAIRN_STATE);
        cr_assert(host_close(&h));
        host_fini(&h);
        unlink(path);
    }
}

/* --- fsck --- */

static void count_line(void *arg, const char *json)
{
    ++*(uint32_t *)arg;
    cr_assert(json[0] == '{' && json[strlen(json) - 1] == '}' && strstr(json, "\"what\""));
}

static void file_flip(uint64_t off)
{
    uint8_t byte;
    int fd = open(path, O_RDWR);
    cr_assert_eq(pread(fd, &byte, 1, (off_t)off), 1);
    byte ^= 8;
    cr_assert_eq(pwrite(fd, &byte, 1, (off_t)off), 1);
    close(fd);
}

static cairn_status fsck_now(struct cairn_fsck_report *r, char *err, size_t cap)
{
    uint32_t lines = 0;
    cairn_status st = cairn_fsck(path, r, count_line, &lines, NULL, NULL, err, cap);
    cr_assert(lines > 0 || st == CAIRN_NOTFOUND || st == CAIRN_INVAL);
    return st;
}

Test(log_file, fsck_finds_each_kind_of_damage_and_changes_nothing)
{
    struct log_host h;
    struct cairn_fsck_report r;
    char err[512];
    host_init(&h, path, DISK, "pool");
    h.side_len = 100;
    open_ok(&h);
    for (uint64_t id = 0; id < 20; id++)
        cr_assert_eq(host_put(&h, id, 100000), CAIRN_OK);
    cr_assert_eq(host_delete(&h, 3), CAIRN_OK);
    cr_assert_eq(h.tier->ops->ident_put(h.tier, "who", 3), CAIRN_OK);
    cr_assert_eq(host_sync(&h), CAIRN_OK);
    usleep(50000);
    cr_assert_eq(fsck_now(&r, err, sizeof err), CAIRN_OK, "%s", err);
    cr_assert_eq(r.records, 20);
    cr_assert_eq(r.tombstones, 1);
    cr_assert_eq(r.payload_bytes, 2000000);
    cr_assert_geq(r.sealed, 2);
    uint64_t record = (uint64_t)host_block(&h, 0) * CAIRN_BLOCK;
    cr_assert(host_close(&h));

    file_flip(record + 5000);
    cr_assert_eq(fsck_now(&r, err, sizeof err), CAIRN_CORRUPT);
    cr_assert_eq(r.bad_payloads, 1);
    file_flip(record + 5000);
    file_flip(record + 200);
    cr_assert_eq(fsck_now(&r, err, sizeof err), CAIRN_CORRUPT);
    cr_assert_eq(r.bad_headers, 1);
    file_flip(record + 200);
    file_flip(CAIRN_DATA_OFFSET + MIB - 4096 + 60);
    cr_assert_eq(fsck_now(&r, err, sizeof err), CAIRN_CORRUPT);
    cr_assert_eq(r.bad_footers, 1);
    file_flip(CAIRN_DATA_OFFSET + MIB - 4096 + 60);
    file_flip(CAIRN_DATA_OFFSET + 100);
    cr_assert_eq(fsck_now(&r, err, sizeof err), CAIRN_CORRUPT);
    cr_assert_eq(r.bad_headers, 1);
    file_flip(CAIRN_DATA_OFFSET + 100);
    file_flip(50);
    cr_assert_eq(fsck_now(&r, err, sizeof err), CAIRN_CORRUPT);
    cr_assert_eq(r.bad_supers, 1);
    file_flip(4096 + 50);
    cr_assert_eq(fsck_now(&r, err, sizeof err), CAIRN_CORRUPT);
    cr_assert(strstr(err, "both superblocks"), "%s", err);
    file_flip(50);
    file_flip(4096 + 50);
    cr_assert_eq(fsck_now(&r, err, sizeof err), CAIRN_OK, "%s", err);

    cr_assert_eq(truncate(path, (off_t)DISK), 0);
    cr_assert_eq(fsck_now(&r, err, sizeof err), CAIRN_CORRUPT);
    cr_assert(strstr(err, "truncated"), "%s", err);
    cr_assert_eq(truncate(path, 100), 0);
    cr_assert_eq(fsck_now(&r, err, sizeof err), CAIRN_INVAL);
    unlink(path);
    cr_assert_eq(fsck_now(&r, err, sizeof err), CAIRN_NOTFOUND);
    host_fini(&h);
}

static uint32_t prewritten_now(void)
{
    struct cairn_super_disk s[2];
    int fd = open(path, O_RDONLY);
    cr_assert_eq(pread(fd, s, sizeof s, 0), (ssize_t)sizeof s);
    close(fd);
    return s[s[1].sequence > s[0].sequence].prewritten;
}

Test(log_file, is_written_once_end_to_end_in_the_background)
{
    struct log_host h;
    host_init(&h, path, DISK, "pool");
    h.o.prewrite = true;
    open_ok(&h);
    cr_assert_eq(host_put(&h, 1, 50000), CAIRN_OK);
    uint64_t written = 0;
    for (int i = 0; i < 600 && prewritten_now() < 32; i++) {
        usleep(200000);
        written += h.tier->ops->stats(h.tier)->prewritten_bytes;
        reopen(&h);
    }
    cr_assert_eq(prewritten_now(), 32, "it remembers how far it came");
    cr_assert_geq(written, 26 * MIB);
    cr_assert_eq(host_get(&h, 1), CAIRN_OK);
    reopen(&h);
    usleep(100000);
    cr_assert_eq(h.tier->ops->stats(h.tier)->prewritten_bytes, 0, "once");
    cr_assert(host_close(&h));
    fsck_ok();
    host_fini(&h);
}

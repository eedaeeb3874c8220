/* Damage at rest and in silence: a block of the log is not what was written. What it hides may be
 * lost; what was dead before stays dead. */
#include "tests/unit/storage/log_bench.h"

#define LEN 100000u /* nine records a segment */

static uint64_t seg_off(uint32_t seg)
{
    return CAIRN_DATA_OFFSET + seg * MIB;
}

/* Bit 0 of some bytes of the block's first half. */
static void spoil(struct bench *b, uint64_t off)
{
    for (uint64_t at = 0; at < CAIRN_BLOCK / 2; at += 64)
        cairn_sim_flip(b->sim, off + at, 0);
}

/* A write that was lost. */
static void wipe(struct bench *b, uint64_t off)
{
    static const uint8_t none[CAIRN_BLOCK];
    cairn_sim_poke(b->sim, off, none, sizeof none);
}

typedef void (*harm)(struct bench *b, uint64_t off);

/* The log's thread may be taking some of them away. */
static uint32_t held_in(struct log_host *h, uint32_t seg)
{
    uint32_t n = 0;
    pthread_mutex_lock(&h->lock);
    for (uint32_t id = 0; id < HOST_KEYS; id++)
        n += h->keys[id].block && (h->keys[id].block - 512) / 256 == seg;
    pthread_mutex_unlock(&h->lock);
    return n;
}

TestSuite(log_damage, .init = path_make, .fini = path_remove, .timeout = 300);

/* The list of a segment ends at a header that cannot be read. */
Test(log_damage, reclaim_tells_of_records_that_it_could_not_list)
{
    struct bench b;
    uint64_t id = 0;
    bench_init(&b);
    open_ok(&b.h);
    while (held_in(&b.h, 2) == 0)
        put_or_die(&b, id++, LEN);
    settle(&b);
    uint32_t before = held_in(&b.h, 0);
    cr_assert_geq(before, 8);
    spoil(&b, seg_off(0) + MIB - CAIRN_BLOCK);
    for (uint64_t lost = 0; lost < id; lost++) {
        if (host_block(&b.h, lost) == 512 + 1 + 3 * (1 + cairn_blocks(LEN)))
            spoil(&b, (uint64_t)host_block(&b.h, lost) * CAIRN_BLOCK);
    }
    while (b.h.tier->ops->stats(b.h.tier)->segments_reclaimed == 0)
        put_or_die(&b, id++, LEN);
    for (uint64_t old = 0; old < before; old++)
        cr_assert(host_block(&b.h, old) == 0 || b.h.keys[old].version > before,
                  "key %d lies in a void segment", (int)old);
    bench_fini(&b);
}

/* A segment was reclaimed: its records may have been deleted since, without a tombstone. Its head,
 * void or of its next life, is damaged; neither first record nor footer may speak for it. */
Test(log_damage, a_reclaimed_segment_stays_dead_when_its_head_is_damaged)
{
    for (uint32_t more = 0; more < 20; more++) {
        struct bench b;
        struct cairn_head_disk head;
        struct cairn_record_disk first;
        uint64_t id = 0;
        bench_init(&b);
        open_ok(&b.h);
        while (b.h.tier->ops->stats(b.h.tier)->segments_reclaimed == 0)
            put_or_die(&b, id++, LEN);
        for (uint32_t i = 0; i < more; i++)
            put_or_die(&b, id++, LEN);
        settle(&b);
        cr_assert(host_close(&b.h));
        for (uint32_t seg = 0; seg < 32; seg++) {
            if (held_in(&b.h, seg) > 0)
                continue;
            cairn_sim_peek(b.sim, seg_off(seg), &head, sizeof head);
            cairn_sim_peek(b.sim, seg_off(seg) + CAIRN_BLOCK, &first, sizeof first);
            spoil(&b, seg_off(seg));
            host_forget(&b.h);
            open_ok(&b.h);
            cr_assert_eq(held_in(&b.h, seg), 0, "segment %d is back, %d values later", (int)seg,
                         (int)more);
            cr_assert(host_close(&b.h));
            cairn_sim_poke(b.sim, seg_off(seg), &head, sizeof head);
            cairn_sim_poke(b.sim, seg_off(seg) + CAIRN_BLOCK, &first, sizeof first);
        }
        bench_fini(&b);
    }
}

/* A header of the open segment is damaged: what lies behind it was durable, and of a tombstone that
 * must be so still. `crash`: no clean close says how far the records go. */
static void header_damaged(uint64_t victim, bool crash)
{
    struct bench b;
    bench_init(&b);
    open_ok(&b.h);
    for (uint64_t id = 0; id < 8; id++)
        put_or_die(&b, id, 20000);
    cr_assert_eq(host_sync(&b.h), CAIRN_OK);
    cr_assert_eq(host_delete(&b.h, 1), CAIRN_OK);
    put_or_die(&b, 8, 20000);
    cr_assert_eq(host_sync(&b.h), CAIRN_OK);
    put_or_die(&b, 9, 20000);
    cr_assert_eq(host_sync(&b.h), CAIRN_OK);
    uint32_t block = host_block(&b.h, victim);
    settle(&b);
    struct cairn_sim *after = crash ? cairn_sim_power_cut(b.sim, 3) : NULL;
    cr_assert(host_close(&b.h));
    if (after) {
        cairn_sim_destroy(b.sim);
        b.sim = after;
        b.plan.next_arg = after;
    }
    spoil(&b, (uint64_t)block * CAIRN_BLOCK);
    for (int again = 0; again < 2; again++) {
        host_forget(&b.h);
        open_ok(&b.h);
        for (uint64_t id = 0; id < 10; id++)
            cr_assert_eq(host_get(&b.h, id), id == victim || id == 1 ? CAIRN_MISS : CAIRN_OK,
                         "key %d, damaged %d, crash %d", (int)id, (int)victim, crash);
        put_or_die(&b, 20, 20000);
        cr_assert(host_close(&b.h));
    }
    bench_fini(&b);
}

Test(log_damage, a_damaged_header_hides_nothing_behind_it)
{
    for (uint64_t victim = 2; victim < 9; victim++) {
        header_damaged(victim, false);
        header_damaged(victim, true);
    }
}

/* --- what lies behind the chain is no part of it --- */

#define RECORD 6u /* blocks of each of the records below */
#define COPIES 2u /* blocks of a tombstone                  */

static void put_six(struct bench *b, uint64_t id)
{
    put_or_die(b, id, (RECORD - 1) * CAIRN_BLOCK);
}

static void records_read(struct bench *b, uint32_t block, void *buf, uint32_t count)
{
    cairn_sim_peek(b->sim, (uint64_t)block * CAIRN_BLOCK, buf, count * RECORD * CAIRN_BLOCK);
}

static void records_set(struct bench *b, uint32_t block, const void *buf, uint32_t count)
{
    cairn_sim_poke(b->sim, (uint64_t)block * CAIRN_BLOCK, buf, count * RECORD * CAIRN_BLOCK);
}

/* The process dies with the power; what was not durable is as the caller makes it. */
static void crash(struct bench *b)
{
    struct cairn_sim *after = cairn_sim_power_cut(b->sim, 3);
    cr_assert(host_close(&b->h));
    cairn_sim_destroy(b->sim);
    b->sim = after;
    b->plan.next_arg = after;
    host_forget(&b->h);
}

/* Values 0 to 2 are durable, of 3 to 5 all landed but the header of 3 when the power went: the log
 * goes on at the place of 3, which is returned, and 4 and 5 are nowhere. */
static uint32_t leftovers(struct bench *b, uint8_t old[2 * RECORD * CAIRN_BLOCK])
{
    static const uint8_t none[CAIRN_BLOCK];
    bench_init(b);
    open_ok(&b->h);
    for (uint64_t id = 0; id < 3; id++) {
        put_six(b, id);
        cr_assert_eq(host_sync(&b->h), CAIRN_OK);
    }
    settle(b);
    for (uint64_t id = 3; id < 6; id++)
        put_six(b, id);
    uint32_t block = host_block(&b->h, 3);
    cr_assert_eq(host_block(&b->h, 5), block + 2 * RECORD);
    records_read(b, block + RECORD, old, 2);
    crash(b);
    cairn_sim_poke(b->sim, (uint64_t)block * CAIRN_BLOCK, none, sizeof none);
    records_set(b, block + RECORD, old, 2);
    open_ok(&b->h);
    for (uint64_t id = 0; id < 6; id++)
        cr_assert_eq(host_get(&b->h, id), id < 3 ? CAIRN_OK : CAIRN_MISS, "key %d", (int)id);
    put_six(b, 10);
    cr_assert_eq(host_block(&b->h, 10), block);
    cr_assert_eq(host_sync(&b->h), CAIRN_OK);
    return block;
}

static void leftovers_stay_away(struct bench *b, bool twelve)
{
    for (int again = 0; again < 2; again++) {
        host_forget(&b->h);
        open_ok(&b->h);
        for (uint64_t id = 0; id < 6; id++)
            cr_assert_eq(host_get(&b->h, id), id < 3 ? CAIRN_OK : CAIRN_MISS, "key %d", (int)id);
        cr_assert_eq(host_get(&b->h, 12), twelve ? CAIRN_OK : CAIRN_MISS);
        put_six(b, 20);
        cr_assert(host_close(&b->h));
    }
    bench_fini(b);
}

/* The last record before a clean close is damaged: where the log ended is known all the same. */
Test(log_damage, a_clean_close_ends_the_log_before_what_a_crash_left)
{
    struct bench b;
    static uint8_t old[2 * RECORD * CAIRN_BLOCK];
    uint32_t block = leftovers(&b, old);
    cr_assert(host_close(&b.h));
    spoil(&b, (uint64_t)block * CAIRN_BLOCK);
    leftovers_stay_away(&b, false);
}

/* A later record proves that the damaged one was durable; between them, where a torn write was to
 * go, one of an earlier process shows. */
Test(log_damage, a_later_session_passes_over_what_an_earlier_one_left)
{
    struct bench b;
    static uint8_t old[2 * RECORD * CAIRN_BLOCK], last[RECORD * CAIRN_BLOCK];
    uint32_t block = leftovers(&b, old);
    put_six(&b, 11);
    put_six(&b, 12);
    cr_assert_eq(host_block(&b.h, 12), block + 2 * RECORD);
    records_read(&b, block + 2 * RECORD, last, 1);
    crash(&b);
    records_set(&b, block + RECORD, old, 1);
    records_set(&b, block + 2 * RECORD, last, 1);
    spoil(&b, (uint64_t)block * CAIRN_BLOCK);
    leftovers_stay_away(&b, true);
}

/* --- nothing behind says that what is damaged was durable --- */

/* What is dead stays so, and whoever opens the log next does not write over what says it. */
static void dead_stays(struct bench *b, uint64_t dead, uint64_t lost)
{
    for (int again = 0; again < 3; again++) {
        host_forget(&b->h);
        open_ok(&b->h);
        for (uint64_t id = 0; id < 4; id++)
            cr_assert_eq(host_get(&b->h, id), id == dead || id == lost ? CAIRN_MISS : CAIRN_OK,
                         "key %d, opened %d times", (int)id, again + 1);
        put_six(b, 20);
        put_six(b, 21);
        cr_assert_eq(host_sync(&b->h), CAIRN_OK);
        cr_assert(host_close(&b->h));
    }
    bench_fini(b);
}

/* Four values; 1 is deleted and that is the end of the log. The block of its tombstone. */
static uint64_t one_of_four_dead(struct bench *b)
{
    bench_init(b);
    open_ok(&b->h);
    for (uint64_t id = 0; id < 4; id++)
        put_six(b, id);
    cr_assert_eq(host_sync(&b->h), CAIRN_OK);
    cr_assert_eq(host_delete(&b->h, 1), CAIRN_OK);
    settle(b);
    return host_block(&b->h, 3) + RECORD;
}

/* One copy of the tombstone is damaged. */
static void tombstone_damaged(uint32_t copy, bool clean, harm damage)
{
    struct bench b;
    uint64_t tombstone = one_of_four_dead(&b);
    if (clean)
        cr_assert(host_close(&b.h));
    else
        crash(&b);
    damage(&b, (tombstone + copy) * CAIRN_BLOCK);
    dead_stays(&b, 1, 1);
}

Test(log_damage, a_damaged_tombstone_brings_nothing_back)
{
    for (uint32_t copy = 0; copy < COPIES; copy++) {
        tombstone_damaged(copy, false, spoil);
        tombstone_damaged(copy, true, spoil);
        tombstone_damaged(copy, false, wipe);
        tombstone_damaged(copy, true, wipe);
    }
}

/* A value and a tombstone are synced together. The value's header is damaged, and no header behind
 * it was written after that sync. */
static void value_before_damaged(harm damage)
{
    struct bench b;
    bench_init(&b);
    open_ok(&b.h);
    for (uint64_t id = 0; id < 3; id++)
        put_six(&b, id);
    cr_assert_eq(host_sync(&b.h), CAIRN_OK);
    put_six(&b, 3);
    cr_assert_eq(host_delete(&b.h, 1), CAIRN_OK);
    uint64_t victim = host_block(&b.h, 3);
    settle(&b);
    crash(&b);
    damage(&b, victim * CAIRN_BLOCK);
    dead_stays(&b, 1, 3);
}

Test(log_damage, a_tombstone_behind_a_damaged_end_counts)
{
    value_before_damaged(spoil);
    value_before_damaged(wipe);
}

static void fsck_sim_ok(struct bench *b)
{
    struct cairn_fsck_report r;
    char file[] = "damage-XXXXXX", err[512] = "";
    int fd = mkstemp(file);
    cr_assert_geq(fd, 0);
    cr_assert_eq(ftruncate(fd, (off_t)(CAIRN_DATA_OFFSET + DISK)), 0);
    cr_assert(cairn_sim_export(b->sim, fd));
    close(fd);
    cairn_status st = cairn_fsck(file, &r, NULL, NULL, NULL, NULL, err, sizeof err);
    unlink(file);
    cr_assert_eq(st, CAIRN_OK, "%s", err);
    cr_assert_eq(r.tombstones, 1);
}

/* What never landed is no damage: of writes that were under way together the power lets some land,
 * and whoever opens the log next keeps the marks among them. */
Test(log_damage, fsck_takes_no_torn_end_for_damage)
{
    struct bench b;
    bench_init(&b);
    open_ok(&b.h);
    for (uint64_t id = 0; id < 3; id++)
        put_six(&b, id);
    cr_assert_eq(host_sync(&b.h), CAIRN_OK);
    put_six(&b, 3);
    cr_assert_eq(host_delete(&b.h, 1), CAIRN_OK);
    uint64_t torn = host_block(&b.h, 3);
    settle(&b);
    crash(&b);
    wipe(&b, torn * CAIRN_BLOCK);
    for (int again = 0; again < 2; again++) {
        host_forget(&b.h);
        open_ok(&b.h);
        put_six(&b, 20);
        cr_assert(host_close(&b.h));
        fsck_sim_ok(&b);
    }
    bench_fini(&b);
}

/* The power goes between the copies of a tombstone; whoever opens the log next lets it count. Then
 * one copy is all there is, and later damaged. */
Test(log_damage, one_copy_that_landed_is_not_left_alone)
{
    struct bench b;
    uint64_t tombstone = one_of_four_dead(&b);
    crash(&b);
    wipe(&b, (tombstone + 1) * CAIRN_BLOCK);
    open_ok(&b.h);
    cr_assert_eq(host_get(&b.h, 1), CAIRN_MISS);
    put_six(&b, 10);
    cr_assert_eq(host_sync(&b.h), CAIRN_OK);
    settle(&b);
    crash(&b);
    spoil(&b, tombstone * CAIRN_BLOCK);
    dead_stays(&b, 1, 1);
}

/* A full segment, its footer lost; a damaged copy of its tombstone takes no room from the last
 * value. */
static void full_and_damaged(uint32_t copy)
{
    const uint64_t last = 62;
    struct bench b;
    bench_init(&b);
    open_ok(&b.h);
    put_or_die(&b, 0, 2 * CAIRN_BLOCK);
    for (uint64_t id = 1; id < last; id++)
        put_or_die(&b, id, 3 * CAIRN_BLOCK);
    cr_assert_eq(host_sync(&b.h), CAIRN_OK);
    cr_assert_eq(host_delete(&b.h, 1), CAIRN_OK);
    uint32_t tombstone = host_block(&b.h, last - 1) + 4;
    put_or_die(&b, last, 3 * CAIRN_BLOCK);
    cr_assert_eq(host_sync(&b.h), CAIRN_OK);
    cr_assert_eq(host_block(&b.h, last), tombstone + 2);
    cr_assert_eq(host_block(&b.h, last) + 4 + cairn_footer_blocks(last + 2), 512 + 256);
    put_or_die(&b, last + 1, LEN);
    cr_assert_eq(host_sync(&b.h), CAIRN_OK);
    settle(&b);
    crash(&b);
    spoil(&b, seg_off(1) - CAIRN_BLOCK);
    spoil(&b, (uint64_t)(tombstone + copy) * CAIRN_BLOCK);
    for (int again = 0; again < 2; again++) {
        host_forget(&b.h);
        open_ok(&b.h);
        for (uint64_t id = 0; id <= last + 1; id++)
            cr_assert_eq(host_get(&b.h, id), id == 1 ? CAIRN_MISS : CAIRN_OK, "key %d, copy %d",
                         (int)id, (int)copy);
        cr_assert(host_close(&b.h));
    }
    bench_fini(&b);
}

Test(log_damage, a_damaged_copy_takes_no_room_from_the_last_value)
{
    full_and_damaged(0);
    full_and_damaged(1);
}

/* Segments full of tombstones, without their footers: the second copies take no room in them. */
Test(log_damage, a_segment_of_tombstones_without_its_footer)
{
    struct bench b;
    bench_init(&b);
    open_ok(&b.h);
    for (uint64_t id = 0; id < 300; id++)
        put_or_die(&b, id, CAIRN_BLOCK);
    for (uint64_t id = 0; id < 300; id += 2)
        cr_assert_eq(host_delete(&b.h, id), CAIRN_OK);
    for (uint64_t id = 300; id < 500; id++)
        put_or_die(&b, id, CAIRN_BLOCK);
    settle(&b);
    cr_assert(host_close(&b.h));
    for (uint32_t seg = 0; seg < 6; seg++)
        spoil(&b, seg_off(seg + 1) - CAIRN_BLOCK);
    for (int again = 0; again < 2; again++) {
        host_forget(&b.h);
        open_ok(&b.h);
        cr_assert_eq(b.h.recovered_tombs, 150);
        for (uint64_t id = 0; id < 500; id++)
            cr_assert_eq(host_get(&b.h, id), id < 300 && id % 2 == 0 ? CAIRN_MISS : CAIRN_OK,
                         "key %d", (int)id);
        cr_assert(host_close(&b.h));
    }
    bench_fini(&b);
}

/* --- what cannot be read behind a damaged header --- */

struct unreadable {
    bool closed;     /* cleanly; else it crashed                            */
    bool garbage;    /* old bytes at the chain's end, that could be damaged */
    uint32_t behind; /* the tombstone by so many blocks, reads fail         */
    bool opens;
};

/* Value 1 is deleted behind a damaged header, in a segment of 4 MiB. */
static void behind_unreadable(const struct unreadable *u)
{
    struct bench b;
    bench_init(&b);
    b.h.o.disk_bytes = 4 * DISK;
    b.h.o.errors_max = 1000;
    open_ok(&b.h);
    for (uint64_t id = 0; id < 3; id++)
        put_six(&b, id);
    cr_assert_eq(host_sync(&b.h), CAIRN_OK);
    cr_assert_eq(host_delete(&b.h, 1), CAIRN_OK);
    put_six(&b, 3);
    settle(&b);
    uint64_t tombstone = host_block(&b.h, 3) - COPIES, victim = host_block(&b.h, 2);
    if (u->closed)
        cr_assert(host_close(&b.h));
    else
        crash(&b);
    spoil(&b, victim * CAIRN_BLOCK);
    if (u->garbage)
        spoil(&b, (tombstone + COPIES + RECORD) * CAIRN_BLOCK);
    cairn_fault_arm(&b.plan, &(struct cairn_fault_rule){
        .fault = CAIRN_FAULT_EIO, .kinds = CAIRN_FAULT_READS, .nth = 1, .times = UINT64_MAX,
        .from = (tombstone + u->behind) * CAIRN_BLOCK,
        .to = CAIRN_DATA_OFFSET + 4 * MIB - CAIRN_BLOCK});
    host_forget(&b.h);
    cairn_status st = host_open(&b.h);
    cr_assert_eq(st, u->opens ? CAIRN_OK : CAIRN_IO, "%d behind: %d %s", (int)u->behind, st,
                 b.h.err);
    if (!u->opens) {
        cr_assert(strstr(b.h.err, "cannot be read completely"), "%s", b.h.err);
        no_rule(&b);
        open_ok(&b.h);
    }
    for (uint64_t id = 0; id < 4; id++)
        cr_assert_eq(host_get(&b.h, id), id == 1 || id == 2 ? CAIRN_MISS : CAIRN_OK, "key %d",
                     (int)id);
    bench_fini(&b);
}

Test(log_damage, what_cannot_be_read_may_be_a_tombstone)
{
    static const struct unreadable cases[] = {
        {.closed = false, .behind = 0, .opens = false},
        {.closed = true, .behind = 0, .opens = false},
        /* What lies before it proves the damage, and nothing was written where the chain ends. */
        {.closed = false, .behind = 400, .opens = true},
        {.closed = false, .garbage = true, .behind = 400, .opens = false},
        /* The log ended before it. */
        {.closed = true, .garbage = true, .behind = COPIES + RECORD + 1, .opens = true},
    };
    for (uint32_t i = 0; i < sizeof cases / sizeof *cases; i++)
        behind_unreadable(&cases[i]);
}

/* --- logs of builds that voided no more than heads --- */

Test(log_damage, an_older_build_left_a_trailer_and_a_first_record_that_speak_for_no_life)
{
    for (uint32_t more = 0; more < 20; more++) {
        struct bench b;
        struct cairn_record_disk first, trailer;
        uint64_t id = 0;
        bench_init(&b);
        open_ok(&b.h);
        while (held_in(&b.h, 2) == 0)
            put_or_die(&b, id++, LEN);
        settle(&b);
        uint64_t at = seg_off(0) + CAIRN_BLOCK, end = seg_off(1) - CAIRN_BLOCK;
        cairn_sim_peek(b.sim, at, &first, sizeof first);
        cairn_sim_peek(b.sim, end, &trailer, sizeof trailer);
        while (b.h.tier->ops->stats(b.h.tier)->segments_reclaimed == 0)
            put_or_die(&b, id++, LEN);
        for (uint32_t i = 0; i < more && held_in(&b.h, 0) == 0; i++)
            put_or_die(&b, id++, LEN);
        if (held_in(&b.h, 0) == 0) {
            settle(&b);
            cr_assert(host_close(&b.h));
            cairn_sim_poke(b.sim, at, &first, sizeof first);
            cairn_sim_poke(b.sim, end, &trailer, sizeof trailer);
            spoil(&b, seg_off(0));
            host_forget(&b.h);
            open_ok(&b.h);
            cr_assert_eq(held_in(&b.h, 0), 0, "it is back, %d values later", (int)more);
        }
        bench_fini(&b);
    }
}

/* A write that went astray covers the start of a sealed segment: its footer knows the rest. */
Test(log_damage, a_footer_speaks_for_a_segment_whose_start_is_damaged)
{
    struct bench b;
    uint64_t id = 0;
    bench_init(&b);
    open_ok(&b.h);
    while (held_in(&b.h, 2) == 0) {
        put_or_die(&b, id, LEN);
        if (id == 5)
            cr_assert_eq(host_delete(&b.h, 3), CAIRN_OK);
        id++;
    }
    settle(&b);
    uint32_t before = held_in(&b.h, 0);
    cr_assert(host_close(&b.h));
    spoil(&b, seg_off(0));
    spoil(&b, seg_off(0) + CAIRN_BLOCK);
    host_forget(&b.h);
    open_ok(&b.h);
    cr_assert_eq(held_in(&b.h, 0), before);
    cr_assert_eq(host_get(&b.h, 0), CAIRN_CORRUPT, "its header is gone");
    for (uint64_t i = 1; i < before; i++)
        cr_assert_eq(host_get(&b.h, i), i == 3 ? CAIRN_MISS : CAIRN_OK, "key %d", (int)i);
    bench_fini(&b);
}

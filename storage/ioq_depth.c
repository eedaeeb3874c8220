#include "storage/ioq.h"

#include "base/clock.h"

#define DEPTH_UNKNOWN 4u
#define DEPTH_TOP 8u
#define BLOCK 4096u
#define ROUNDS 2u
#define WINDOW_NS (10 * CAIRN_NS_PER_MS)
/* One read of the largest value takes longer than a window on a slow disk, hence a floor. */
#define WINDOW_READS 4u
/* A window that is not over by then says that the device hangs. */
#define STUCK_NS (2 * CAIRN_NS_PER_S)

struct probe {
    struct cairn_ioq *q;
    struct cairn_io io[DEPTH_TOP];
    uint64_t slots;  /* places in the file to read from */
    uint32_t len;
    uint64_t random;
    uint32_t out;
    bool failed;
};

static uint64_t next_random(uint64_t *x)
{
    *x ^= *x << 13;
    *x ^= *x >> 7;
    *x ^= *x << 17;
    return *x;
}

static void send(struct probe *p, struct cairn_io *io)
{
    io->off = next_random(&p->random) % p->slots * p->len;
    if (p->q->ops->submit(p->q, io))
        p->out++;
    else
        p->failed = true;
}

static uint32_t take(struct probe *p, struct cairn_io **done, uint64_t stuck_ns)
{
    uint32_t n = p->q->ops->poll(p->q, done, DEPTH_TOP);
    if (n == 0)
        p->q->ops->wait(p->q, stuck_ns);
    for (uint32_t i = 0; i < n; i++)
        if (done[i]->res != (int32_t)p->len)
            p->failed = true;
    p->out -= n;
    return n;
}

/* Bytes per ns at this depth; 0 if reads fail or stop coming back. */
static double rate_at(struct probe *p, uint32_t depth)
{
    struct cairn_io *done[DEPTH_TOP];
    uint64_t begin = cairn_now_ns(), now = begin, reads = 0;
    uint64_t stuck_ns = begin + STUCK_NS;
    for (uint32_t i = 0; i < depth; i++)
        send(p, &p->io[i]);
    while (p->out > 0 && now < stuck_ns) {
        uint32_t n = take(p, done, stuck_ns);
        now = cairn_now_ns();
        reads += n;
        bool more = !p->failed && (now - begin < WINDOW_NS || reads < WINDOW_READS * depth);
        for (uint32_t i = 0; more && i < n; i++)
            send(p, done[i]);
    }
    if (p->out > 0 || p->failed)
        return 0;
    return (double)(reads * p->len) / (double)(now - begin + 1);
}

static uint32_t choose(struct probe *p)
{
    static const uint32_t depths[] = {2, 4, DEPTH_TOP};
    double rate[3] = {0, 0, 0}, best = 0;
    for (uint32_t i = 0; i < 3 * ROUNDS; i++) {
        double r = rate_at(p, depths[i % 3]);
        if (r <= 0)
            return DEPTH_UNKNOWN;
        if (r > rate[i % 3])
            rate[i % 3] = r;
        if (r > best)
            best = r;
    }
    for (uint32_t i = 0; i < 2; i++)
        if (rate[i] >= 0.95 * best)
            return depths[i];
    return DEPTH_TOP;
}

uint32_t cairn_ioq_measure_depth(const struct cairn_ioq_ops *ops, int fd, void *region,
                                 size_t region_len, uint64_t file_len, uint32_t len)
{
    if (len == 0 || len % BLOCK != 0 || len > INT32_MAX || region_len / len < DEPTH_TOP ||
        file_len / len < 4 * DEPTH_TOP)
        return DEPTH_UNKNOWN;
    struct probe p = {.slots = file_len / len, .len = len, .random = 0x9e3779b97f4a7c15ull};
    struct cairn_ioq_params params = {
        .fd = fd, .depth = DEPTH_TOP, .region = region, .region_len = (size_t)len * DEPTH_TOP};
    if (ops->open(&params, &p.q) != CAIRN_OK)
        return DEPTH_UNKNOWN;
    for (uint32_t i = 0; i < DEPTH_TOP; i++) {
        p.io[i].kind = CAIRN_IO_READ;
        p.io[i].len = len;
        p.io[i].buf = (char *)region + (size_t)i * len;
    }
    uint32_t depth = choose(&p);
    return ops->close(p.q) ? depth : 0;
}

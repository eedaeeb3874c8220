#include "base/move.h"

#include "base/copy.h"

static const struct cairn_mem_kind *const kinds[] = {&cairn_mem_kind_host, &cairn_mem_kind_cuda};
#define KINDS (sizeof kinds / sizeof kinds[0])

static _Thread_local const struct cairn_order *entered;

static cairn_status host_out(const struct cairn_move *m)
{
    if (!m->checks) {
        cairn_copy_scatter(m->list, m->list_off, m->value + m->off, m->len);
        return CAIRN_OK;
    }
    int bad = m->list_off ? cairn_copy_scatter_verify_part(m->list, m->value, m->value_len, m->off,
                                                           m->len, m->checks)
                          : cairn_copy_scatter_verify(m->list, m->value, m->value_len, m->off,
                                                      m->len, m->checks);
    return bad < 0 ? CAIRN_OK : CAIRN_CORRUPT;
}

static cairn_status host_in(const struct cairn_move *m)
{
    if (m->checks)
        cairn_copy_gather_hash(m->value, m->list, m->len, m->checks);
    else
        cairn_copy_gather(m->value, m->list, m->list_off, m->len);
    return CAIRN_OK;
}

const struct cairn_mem_kind cairn_mem_kind_host = {
    .name = "host", .mem = CAIRN_MEM_HOST, .out = host_out, .in = host_in};

const struct cairn_mem_kind *cairn_mem_kind(uint32_t mem)
{
    return mem < KINDS ? kinds[mem] : NULL;
}

bool cairn_sgl_known(const struct cairn_sgl *list)
{
    return cairn_mem_kind(list->mem) != NULL;
}

cairn_status cairn_move_out(const struct cairn_sgl *list, size_t list_off, const void *value,
                            size_t value_len, size_t off, size_t len, const uint64_t *checks,
                            uint64_t deadline_ns)
{
    const struct cairn_mem_kind *k = cairn_mem_kind(list->mem);
    /* Moving out writes neither to the value nor to the checks. */
    struct cairn_move m = {.list = list,
                           .list_off = list_off,
                           .value = (char *)(uintptr_t)value,
                           .value_len = value_len,
                           .off = off,
                           .len = len,
                           .checks = (uint64_t *)(uintptr_t)checks,
                           .deadline_ns = deadline_ns};
    return k ? k->out(&m) : CAIRN_INVAL;
}

cairn_status cairn_move_in(void *dst, const struct cairn_sgl *list, size_t list_off, size_t len,
                           uint64_t *checks, uint64_t deadline_ns)
{
    const struct cairn_mem_kind *k = cairn_mem_kind(list->mem);
    struct cairn_move m = {.list = list,
                           .list_off = list_off,
                           .value = dst,
                           .value_len = len,
                           .len = len,
                           .checks = checks,
                           .deadline_ns = deadline_ns};
    return k ? k->in(&m) : CAIRN_INVAL;
}

static bool has_point(const struct cairn_order *o, const struct cairn_sgl *list)
{
    for (uint32_t i = 0; i < o->count; i++)
        if (o->points[i].kind->mem == list->mem && o->points[i].kind->ordered(&o->points[i], list))
            return true;
    return false;
}

void cairn_order_add(struct cairn_order *o, const struct cairn_sgl *list)
{
    const struct cairn_mem_kind *k = cairn_mem_kind(list->mem);
    if (!k || !k->order || o->failed || list->count == 0 || has_point(o, list))
        return;
    struct cairn_order_point p = {.kind = k, .stream = list->stream};
    o->failed = o->count < sizeof o->points / sizeof o->points[0] ? k->order(list, &p)
                                                                  : CAIRN_INVAL;
    if (!o->failed)
        o->points[o->count++] = p;
}

void cairn_order_add_gets(struct cairn_order *o, const struct cairn_get *gets, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (gets[i].out.mem != CAIRN_MEM_HOST)
            cairn_order_add(o, &gets[i].out);
}

void cairn_order_add_puts(struct cairn_order *o, const struct cairn_put *puts, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (puts[i].value.mem != CAIRN_MEM_HOST)
            cairn_order_add(o, &puts[i].value);
}

void cairn_order_end(struct cairn_order *o)
{
    while (o->count) {
        const struct cairn_order_point *p = &o->points[--o->count];
        p->kind->order_end(p);
    }
}

const struct cairn_order *cairn_order_enter(const struct cairn_order *o)
{
    const struct cairn_order *before = entered;
    entered = o;
    return before;
}

cairn_status cairn_order_wait(uint64_t deadline_ns)
{
    if (!entered)
        return CAIRN_OK;
    cairn_status st = entered->failed;
    for (uint32_t i = 0; i < entered->count && !st; i++)
        st = entered->points[i].kind->order_wait(&entered->points[i], deadline_ns);
    return st;
}

void cairn_memory_offer(void *base, size_t len, bool writable)
{
    for (size_t i = 0; i < KINDS; i++)
        if (kinds[i]->offer)
            kinds[i]->offer(base, len, writable);
}

void cairn_memory_withdraw(void *base)
{
    for (size_t i = 0; i < KINDS; i++)
        if (kinds[i]->withdraw)
            kinds[i]->withdraw(base);
}

/*
 * The reference guest's only program: holds pages of known content, rewrites some of them, checks them, and says so.
 *
 * One thread does everything in short slices (so nothing needs a lock): rewriting, the background check, full checks on
 * command, the serial console and the network. A second one sleeps 5 ms at a time and notes how long it really took.
 *
 * Parameters come from the kernel's command line, commands from the serial console or TCP port 8; port 7 echoes.
 */

#include "ends.c"
#include "pages.c"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/reboot.h>

#define TICK_NS (250u * MS)
#define TICKER_NS (5u * MS)
#define SLICE_NS (2u * MS) /* longest work between two looks at the network, so an echo waits no longer */
#define NAP_NS (5u * MS)
#define LAZY_NAP_NS (20u * MS) /* with nothing to rewrite: an idle guest should look like one */
#define BACKLOG_NS (100u * MS) /* pages owed for longer than this are forgiven: no burst after a standstill */
#define PREFIX 64              /* bytes looked at before rewriting at full speed: enough for a stale or empty page */
#define MOST_BAD_LINES 20

static struct {
    uint64_t working_random, working_text, next_rewrite;
    uint64_t next_check, checked, bad, bad_lines;
    double owed_rewrites, owed_checks;
    long rate, check_rate; /* pages per second; a rate of -1 is as fast as possible */
} work;

static struct {
    int for_end;
    uint64_t next, bad;
} full_check = {.for_end = NOBODY};

static _Atomic uint64_t longest_gap_ns;

/* Checking and rewriting ------------------------------------------------------------------------------------------- */

static void report_bad(uint64_t index, int difference)
{
    if (memory.known_bad[index])
        return;
    memory.known_bad[index] = 1;
    work.bad++;
    if (work.bad_lines++ < MOST_BAD_LINES)
        say("LM bad page=%llu kind=%s expected_generation=%u first_difference=%d holds=%s", (unsigned long long)index,
            kind_names[kind_of(index)], memory.generation[index], difference, what_is_there(index));
}

static int check_page(uint64_t index, unsigned length)
{
    int difference = first_difference(index, memory.generation[index], length);
    if (difference >= 0)
        report_bad(index, difference);
    return difference >= 0;
}

static void check_next(void)
{
    check_page(work.next_check, PAGE);
    work.checked++;
    work.next_check = (work.next_check + 1) % memory.pages;
}

/* The page is looked at before it is overwritten: otherwise rewriting would hide the very pages most at risk. */
static void rewrite_next(void)
{
    uint64_t at = work.next_rewrite++ % (work.working_random + work.working_text);
    uint64_t index = at < work.working_random ? at : memory.end[RANDOM] + at - work.working_random;
    check_page(index, work.rate < 0 ? PREFIX : PAGE);
    memory.generation[index]++;
    memory.rewritten++;
    fill(page_at(index), index, memory.generation[index], PAGE);
}

/* The working set is taken from random and text pages in the ratio in which they exist. */
static void set_working_set(uint64_t mib)
{
    uint64_t most = memory.end[TEXT], wanted = mib * PAGES_PER_MIB;
    if (wanted > most)
        wanted = most;
    work.working_random = most ? wanted * memory.end[RANDOM] / most : 0;
    work.working_text = wanted - work.working_random;
}

/* Commands --------------------------------------------------------------------------------------------------------- */

static void forget(int end)
{
    if (full_check.for_end == end)
        full_check.for_end = NOBODY;
}

static void end_machine(int end, int how)
{
    answer(end, "ok");
    nap(50 * MS); /* lets the answer leave before the network card does */
    reboot(how);
}

static void panic_kernel(int end)
{
    answer(end, "ok");
    nap(50 * MS);
    int trigger = open("/proc/sysrq-trigger", O_WRONLY);
    if (trigger < 0 || write(trigger, "c", 1) != 1)
        answer(end, "error no sysrq");
    if (trigger >= 0)
        close(trigger);
}

static void obey(int end, const char *line)
{
    long number;
    unsigned long long index;
    if (strcmp(line, "check") == 0) {
        if (full_check.for_end != NOBODY) {
            answer(end, "error a check is under way");
            return;
        }
        full_check.for_end = end;
        full_check.next = full_check.bad = 0;
    } else if (strcmp(line, "stat") == 0) {
        answer(end, "t_ms=%llu pages=%llu seed=%llu rate=%ld ws_pages=%llu rewritten=%llu checked=%llu bad=%llu",
               (unsigned long long)(now_ns() / MS), (unsigned long long)memory.pages, (unsigned long long)memory.seed,
               work.rate, (unsigned long long)(work.working_random + work.working_text),
               (unsigned long long)memory.rewritten, (unsigned long long)work.checked, (unsigned long long)work.bad);
    } else if (sscanf(line, "rate %ld", &number) == 1 && number >= -1) {
        work.rate = number;
        answer(end, "ok");
    } else if (sscanf(line, "ws %ld", &number) == 1 && number >= 0) {
        set_working_set((uint64_t)number);
        answer(end, "ok");
    } else if (sscanf(line, "damage %llu", &index) == 1 && index < memory.pages) {
        page_at(index)[PAGE / 2] ^= 1;
        answer(end, "ok");
    } else if (strcmp(line, "poweroff") == 0) {
        end_machine(end, RB_POWER_OFF);
    } else if (strcmp(line, "reboot") == 0) {
        end_machine(end, RB_AUTOBOOT);
    } else if (strcmp(line, "panic") == 0) {
        panic_kernel(end);
    } else if (strcmp(line, "crash") == 0) {
        answer(end, "ok");
        nap(50 * MS);
        abort();
    } else {
        answer(end, "error unknown command");
    }
}

/* Time ------------------------------------------------------------------------------------------------------------- */

static void *tick(void *unused)
{
    (void)unused;
    for (uint64_t before = now_ns();;) {
        nap(TICKER_NS);
        uint64_t now = now_ns();
        if (now - before > atomic_load(&longest_gap_ns))
            atomic_store(&longest_gap_ns, now - before);
        before = now;
    }
    return NULL;
}

static void owe(double *owed, long rate, uint64_t since_ns)
{
    double most = (double)rate * BACKLOG_NS / SECOND + 1;
    *owed += (double)rate * (double)since_ns / SECOND;
    if (*owed > most)
        *owed = most;
}

static void continue_full_check(uint64_t until_ns)
{
    while (full_check.next < memory.pages && now_ns() < until_ns)
        full_check.bad += (uint64_t)check_page(full_check.next++, PAGE);
    if (full_check.next < memory.pages)
        return;
    uint64_t sum = generation_sum();
    if (sum != memory.rewritten) {
        full_check.bad++;
        work.bad++;
        say("LM bad page=%llu kind=generations expected_generation=%llu first_difference=0 holds=%llu",
            (unsigned long long)memory.pages, (unsigned long long)memory.rewritten, (unsigned long long)sum);
    }
    answer(full_check.for_end, "checked=%llu bad=%llu generation_sum=%llu", (unsigned long long)memory.pages,
           (unsigned long long)full_check.bad, (unsigned long long)sum);
    full_check.for_end = NOBODY;
}

/* One slice of everything that is due; true when there is more to do at once. */
static int do_slice(uint64_t since_ns)
{
    uint64_t until = now_ns() + SLICE_NS;
    int may_rewrite = work.working_random + work.working_text > 0;
    if (memory.pages == 0)
        return 0;
    owe(&work.owed_checks, work.check_rate, since_ns);
    while (work.owed_checks >= 1 && now_ns() < until) {
        check_next();
        work.owed_checks--;
    }
    if (work.rate > 0)
        owe(&work.owed_rewrites, work.rate, since_ns);
    else
        work.owed_rewrites = work.rate < 0 ? 1e9 : 0;
    while (may_rewrite && work.owed_rewrites >= 1 && now_ns() < until) {
        rewrite_next();
        work.owed_rewrites--;
    }
    if (full_check.for_end != NOBODY)
        continue_full_check(now_ns() + SLICE_NS);
    return full_check.for_end != NOBODY || work.owed_checks >= 1 || (may_rewrite && work.owed_rewrites >= 1);
}

static long parameter(const char *command_line, const char *name, long otherwise)
{
    const char *found = strstr(command_line, name);
    return found ? strtol(found + strlen(name), NULL, 10) : otherwise;
}

int main(void)
{
    static char command_line[4096];
    int from = open("/proc/cmdline", O_RDONLY);
    if (from < 0 || read(from, command_line, sizeof command_line - 1) < 0)
        say("LM error no /proc/cmdline");
    close(from);
    uint64_t mib[KINDS] = {
        [RANDOM] = (uint64_t)parameter(command_line, "lm.random=", 32),
        [TEXT] = (uint64_t)parameter(command_line, "lm.text=", 32),
        [EQUAL] = (uint64_t)parameter(command_line, "lm.equal=", 0),
        [ZERO] = (uint64_t)parameter(command_line, "lm.zero=", 0),
    };
    if (fill_memory((uint64_t)parameter(command_line, "lm.seed=", 1), mib) < 0) {
        say("LM error no memory for %llu pages", (unsigned long long)memory.pages);
        return 1;
    }
    work.rate = parameter(command_line, "lm.rate=", 0);
    work.check_rate = parameter(command_line, "lm.check=", 2000);
    set_working_set((uint64_t)parameter(command_line, "lm.ws=", 16));
    signal(SIGPIPE, SIG_IGN);
    open_ends();
    say("LM ready pages=%llu seed=%llu mib=%llu", (unsigned long long)memory.pages, (unsigned long long)memory.seed,
        (unsigned long long)(memory.pages / PAGES_PER_MIB));

    pthread_t ticker;
    pthread_create(&ticker, NULL, tick, NULL);
    uint64_t before = now_ns(), next_tick = before + TICK_NS;
    for (;;) {
        uint64_t now = now_ns();
        int more = do_slice(now - before);
        before = now;
        if (now >= next_tick) {
            say("LM tick t_ms=%llu rewritten=%llu checked=%llu bad=%llu gap_ms=%llu", (unsigned long long)(now / MS),
                (unsigned long long)memory.rewritten, (unsigned long long)work.checked, (unsigned long long)work.bad,
                (unsigned long long)(atomic_exchange(&longest_gap_ns, 0) / MS));
            next_tick = now - next_tick > TICK_NS ? now + TICK_NS : next_tick + TICK_NS;
        }
        serve(more ? 0 : work.rate > 0 ? NAP_NS : LAZY_NAP_NS);
    }
}

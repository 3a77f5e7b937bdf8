/*
 * What every page of the reference guest must hold.
 *
 * A page's content follows from (seed, index, generation, kind) alone, so it can be made again at any time and compared
 * whole. The generations stand in a table in other pages, and the number of rewritings in a variable: a page that was
 * lost, left behind or damaged on the way disagrees with the table, and a table left behind disagrees with the number.
 *
 * Order of the kinds in memory: random, text, equal, zero. Only random and text pages are ever rewritten.
 */

#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#define PAGE 4096
#define PAGES_PER_MIB 256
#define MOST_OLDER_TRIED 16

enum kind { RANDOM, TEXT, EQUAL, ZERO, KINDS };

static const char *const kind_names[KINDS] = {"random", "text", "equal", "zero"};

static struct {
    uint64_t seed;
    uint64_t pages;
    uint64_t end[KINDS]; /* first page after this kind */
    unsigned char *content;
    uint32_t *generation;
    unsigned char *known_bad;
    uint64_t rewritten;
} memory;

/* Frequent words; eight bytes each with their space, so that one store writes any of them. */
static const char vocabulary[128][9] = {
    "memory ", "page ", "of ", "the ", "host ", "guest ", "moves ", "to ", "and ", "from ", "a ", "in ", "link ",
    "is ", "source ", "copy ", "round ", "dirty ", "network", "with ", "time ", "path ", "by ", "on ", "rate ",
    "bytes ", "for ", "after ", "before ", "while ", "every ", "one ", "two ", "three ", "four ", "five ", "six ",
    "seven ", "eight ", "nine ", "ten ", "green ", "blue ", "red ", "white ", "black ", "river ", "stone ", "tree ",
    "leaf ", "root ", "bark ", "wind ", "rain ", "snow ", "cloud ", "sun ", "moon ", "star ", "night ", "day ",
    "week ", "month ", "year ", "first ", "last ", "near ", "far ", "high ", "low ", "wide ", "narrow ", "old ",
    "new ", "young ", "light ", "dark ", "warm ", "cold ", "bread ", "water ", "salt ", "milk ", "honey ", "apple ",
    "pear ", "plum ", "grape ", "house ", "door ", "window ", "roof ", "wall ", "floor ", "garden ", "street ",
    "bridge ", "tower ", "market ", "ship ", "sail ", "oar ", "anchor ", "harbour", "island ", "coast ", "wave ",
    "tide ", "deep ", "shallow", "north ", "south ", "east ", "west ", "left ", "right ", "up ", "down ", "over ",
    "under ", "between", "beyond ", "writes ", "reads ", "keeps ", "gives ", "takes ", "finds ",
};
static uint64_t word_bits[128];
static unsigned char word_length[128];

static uint64_t mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

/* Start value of a page's own random numbers; never zero, where xorshift would stay for ever. */
static uint64_t page_key(uint64_t index, uint32_t generation)
{
    return mix(memory.seed ^ mix(index ^ mix(generation))) | 1;
}

static uint64_t next_random(uint64_t x)
{
    x ^= x << 13;
    x ^= x >> 7;
    return x ^ (x << 17);
}

static enum kind kind_of(uint64_t index)
{
    int kind = RANDOM;
    while (index >= memory.end[kind])
        kind++;
    return (enum kind)kind;
}

static void prepare_vocabulary(void)
{
    for (int i = 0; i < 128; i++) {
        memcpy(&word_bits[i], vocabulary[i], 8);
        word_length[i] = (unsigned char)strlen(vocabulary[i]);
    }
}

static void fill_text(unsigned char *to, uint64_t key, unsigned length)
{
    unsigned at = 0;
    uint64_t bits = 0;
    for (unsigned left = 0; at < length; left--, bits >>= 7) {
        if (left == 0) {
            bits = key = next_random(key);
            left = 9; /* seven bits a word, 63 of the 64 used */
        }
        unsigned word = bits & 127;
        unsigned room = length - at;
        if (room >= 8)
            memcpy(to + at, &word_bits[word], 8); /* what is past the word is overwritten by the next one */
        else
            memcpy(to + at, &word_bits[word], room);
        at += word_length[word];
    }
}

/* The first `length` bytes (a multiple of eight) that page `index` must hold. */
static void fill(unsigned char *to, uint64_t index, uint32_t generation, unsigned length)
{
    uint64_t key = page_key(index, generation);
    switch (kind_of(index)) {
    case RANDOM:
        for (unsigned at = 0; at < length; at += 8) {
            key = next_random(key);
            memcpy(to + at, &key, 8);
        }
        break;
    case TEXT:
        fill_text(to, key, length);
        break;
    case EQUAL:
        key = mix(memory.seed) | 1;
        for (unsigned at = 0; at < length; at += 8)
            memcpy(to + at, &key, 8);
        break;
    default:
        memset(to, 0, length);
    }
}

static unsigned char *page_at(uint64_t index)
{
    return memory.content + index * PAGE;
}

/* Offset of the first byte that is not as it must be, looking at `length` bytes; -1 when there is none. */
static int first_difference(uint64_t index, uint32_t generation, unsigned length)
{
    static unsigned char expected[PAGE];
    const unsigned char *page = page_at(index);
    fill(expected, index, generation, length);
    for (unsigned at = 0; at < length; at += 8) {
        uint64_t wanted, found;
        memcpy(&wanted, expected + at, 8);
        memcpy(&found, page + at, 8);
        if (wanted != found)
            return (int)(at + (unsigned)__builtin_ctzll(wanted ^ found) / 8);
    }
    return -1;
}

/* What a bad page holds instead: the words in which a lost, a stale and a damaged page are told apart. */
static const char *what_is_there(uint64_t index)
{
    const unsigned char *page = page_at(index);
    if (page[0] == 0 && memcmp(page, page + 1, PAGE - 1) == 0)
        return "zero";
    uint32_t now = memory.generation[index];
    for (uint32_t back = 1; back <= MOST_OLDER_TRIED && back <= now; back++)
        if (first_difference(index, now - back, PAGE) < 0)
            return "older";
    return "damaged";
}

static uint64_t generation_sum(void)
{
    uint64_t sum = 0;
    for (uint64_t index = 0; index < memory.pages; index++)
        sum += memory.generation[index];
    return sum;
}

static void *map(uint64_t bytes)
{
    return mmap(NULL, bytes ? bytes : PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
}

/* Takes the memory and writes every page, zero ones too, so that all really exist. Returns -1 for want of memory. */
static int fill_memory(uint64_t seed, const uint64_t mib[KINDS])
{
    memory.seed = seed;
    for (int kind = 0; kind < KINDS; kind++)
        memory.end[kind] = memory.pages += mib[kind] * PAGES_PER_MIB;
    memory.content = map(memory.pages * PAGE);
    memory.generation = map(memory.pages * sizeof *memory.generation);
    memory.known_bad = map(memory.pages);
    if (memory.content == MAP_FAILED || memory.generation == MAP_FAILED || memory.known_bad == MAP_FAILED)
        return -1;
    prepare_vocabulary();
    for (uint64_t index = 0; index < memory.pages; index++)
        fill(page_at(index), index, 0, PAGE);
    return 0;
}

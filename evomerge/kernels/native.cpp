// One pass over base and sources on a CPU: the twin of methods/combine.py, bit for bit.
//
// A tensor is worked through in blocks that stay in the first cache, each step of a block a loop that the compiler
// vectorises. Every sum is taken in the order of the sources, every product is rounded before it is added (compile with
// -ffp-contract=off and without -ffast-math), and a mask multiplies, so that a NaN is seen whatever is dropped.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#if defined(__F16C__) || defined(__AVX2__)
#include <immintrin.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace {

constexpr int MOST = 16;    // sources
constexpr int BLOCK = 512;  // elements; a multiple of 4, so that no Philox counter straddles two blocks

enum Kind : int32_t { FLOAT32, FLOAT64, BFLOAT16, FLOAT16 };
enum Keep : int32_t { ALL, TRIM, DROP, BAND, RANK };

template <class To, class From>
inline To bits(From x) {
    static_assert(sizeof(To) == sizeof(From), "same size");
    To y;
    std::memcpy(&y, &x, sizeof y);
    return y;
}

struct bfloat16 {
    uint16_t word;
};

inline float wide(float x) { return x; }
inline double wide(double x) { return x; }
inline float wide(bfloat16 x) { return bits<float>(uint32_t(x.word) << 16); }

inline void narrow(float x, float &to) { to = x; }
inline void narrow(float x, double &to) { to = x; }
inline void narrow(double x, float &to) { to = float(x); }
inline void narrow(double x, double &to) { to = x; }
inline void narrow(float x, bfloat16 &to) {  // to nearest, ties to even
    const uint32_t word = bits<uint32_t>(x);
    const uint32_t rounded = (word + 0x7FFF + ((word >> 16) & 1)) >> 16;
    to.word = uint16_t(x == x ? rounded : 0x7FC0);
}
inline void narrow(double x, bfloat16 &to) { narrow(float(x), to); }  // torch rounds twice as well

// float16, without the instructions for it: Giesen, "half-to-float done quick"
inline float half_to_float(uint16_t half) {
    uint32_t word = uint32_t(half & 0x7FFF) << 13;
    const bool special = word >= (0x7C00u << 13);
    const float scaled = bits<float>(word) * bits<float>(uint32_t(254 - 15) << 23);  // subnormals become normal
    word = (special ? word | 0x7F800000u : bits<uint32_t>(scaled)) | uint32_t(half & 0x8000) << 16;
    return bits<float>(word);
}

inline uint16_t float_to_half(float x) {
    const uint32_t word = bits<uint32_t>(x), sign = word & 0x80000000u, size = word ^ sign;
    uint32_t half;
    if (size >= (143u << 23))  // 2¹⁶ and more, and NaN
        half = size > 0x7F800000u ? 0x7E00 : 0x7C00;
    else if (size < (113u << 23))  // subnormal: the addition rounds
        half = bits<uint32_t>(bits<float>(size) + bits<float>(126u << 23)) - (126u << 23);
    else
        half = (size - (112u << 23) + 0xFFF + ((size >> 13) & 1)) >> 13;
    return uint16_t(half | sign >> 16);
}

void halves_to_floats(const uint16_t *from, int count, float *to) {
    int i = 0;
#ifdef __F16C__
    for (; i + 8 <= count; i += 8)
        _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from + i))));
#endif
    for (; i < count; ++i) to[i] = half_to_float(from[i]);
}

void floats_to_halves(const float *from, int count, uint16_t *to) {
    int i = 0;
#ifdef __F16C__
    for (; i + 8 <= count; i += 8)
        _mm_storeu_si128(reinterpret_cast<__m128i *>(to + i), _mm256_cvtps_ph(_mm256_loadu_ps(from + i), 0));
#endif
    for (; i < count; ++i) to[i] = float_to_half(from[i]);
}

// Four words for each of eight counters, Philox-4x32-10; see masks.py. Only the low half of each lane counts.
#if defined(__AVX512F__)
using Lanes = __m512i;
inline Lanes every(uint64_t x) { return _mm512_set1_epi64(int64_t(x)); }
inline Lanes load(const uint64_t *x) { return _mm512_loadu_si512(x); }
inline void store(uint64_t *to, Lanes x) { _mm512_storeu_si512(to, x); }
inline Lanes product(Lanes x, Lanes y) { return _mm512_mul_epu32(x, y); }
inline Lanes high(Lanes x) { return _mm512_srli_epi64(x, 32); }
inline Lanes mixed(Lanes x, Lanes y, Lanes z) { return _mm512_ternarylogic_epi64(x, y, z, 0x96); }
constexpr int WIDTH = 8;
#elif defined(__AVX2__)
using Lanes = __m256i;
inline Lanes every(uint64_t x) { return _mm256_set1_epi64x(int64_t(x)); }
inline Lanes load(const uint64_t *x) { return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(x)); }
inline void store(uint64_t *to, Lanes x) { _mm256_storeu_si256(reinterpret_cast<__m256i *>(to), x); }
inline Lanes product(Lanes x, Lanes y) { return _mm256_mul_epu32(x, y); }
inline Lanes high(Lanes x) { return _mm256_srli_epi64(x, 32); }
inline Lanes mixed(Lanes x, Lanes y, Lanes z) { return _mm256_xor_si256(_mm256_xor_si256(x, y), z); }
constexpr int WIDTH = 4;
#else
using Lanes = uint64_t;
inline Lanes every(uint64_t x) { return x; }
inline Lanes load(const uint64_t *x) { return *x; }
inline void store(uint64_t *to, Lanes x) { *to = x; }
inline Lanes product(Lanes x, Lanes y) { return uint64_t(uint32_t(x)) * uint32_t(y); }
inline Lanes high(Lanes x) { return x >> 32; }
inline Lanes mixed(Lanes x, Lanes y, Lanes z) { return x ^ y ^ z; }
constexpr int WIDTH = 1;
#endif
constexpr int GROUP = 4 * WIDTH;  // counters at a time: four chains, since one waits for its multiplications

void philox(uint64_t key, uint64_t counter, uint32_t *words) {
    uint64_t lanes[4][GROUP];  // of each word
    Lanes c0[4], c1[4], c2[4], c3[4];
    for (int i = 0; i < GROUP; ++i) lanes[0][i] = counter + i, lanes[1][i] = (counter + i) >> 32;
    for (int j = 0; j < 4; ++j) {
        c0[j] = load(&lanes[0][j * WIDTH]), c1[j] = load(&lanes[1][j * WIDTH]);
        c2[j] = c3[j] = every(0);
    }
    uint32_t k0 = uint32_t(key), k1 = uint32_t(key >> 32);
    for (int round = 0; round < 10; ++round) {
        for (int j = 0; j < 4; ++j) {
            const Lanes left = product(c0[j], every(0xD2511F53)), right = product(c2[j], every(0xCD9E8D57));
            c0[j] = mixed(high(right), c1[j], every(k0));
            c2[j] = mixed(high(left), c3[j], every(k1));
            c1[j] = right, c3[j] = left;
        }
        k0 += 0x9E3779B9, k1 += 0xBB67AE85;
    }
    for (int j = 0; j < 4; ++j) {
        store(&lanes[0][j * WIDTH], c0[j]), store(&lanes[1][j * WIDTH], c1[j]);
        store(&lanes[2][j * WIDTH], c2[j]), store(&lanes[3][j * WIDTH], c3[j]);
    }
    for (int i = 0; i < GROUP; ++i)
        for (int w = 0; w < 4; ++w) words[4 * i + w] = uint32_t(lanes[w][i]);
}

// The uniform numbers of positions `start` … `start` + BLOCK - 1; `start` is a multiple of 4.
void draw(uint64_t key, int64_t start, int count, float *uniform) {
    alignas(64) uint32_t words[BLOCK + 4 * GROUP];
    for (int i = 0; i < count; i += 4 * GROUP) philox(key, uint64_t(start + i) / 4, words + i);
    for (int i = 0; i < count; ++i) {
        const int32_t word = int32_t(words[i]);
        uniform[i] = float(word ^ (word >> 31)) * float(4.6566127342e-10);
    }
}

}  // namespace

extern "C" {

// What `combine` is asked to do with the elements from `start` to before `stop`.
struct Job {
    const void *base;
    const void *sources[MOST];
    void *merged;
    int32_t base_kind, source_kinds[MOST], merged_kind;
    int64_t start, stop, origin, stride;  // `kept` writes row k of [K, stride], whose first column is position `origin`
    int32_t count, subtract, keep, elect, weighted, normalize, tie;
    double weight[MOST], voice[MOST], scale;
    float limit[MOST], upper[MOST];  // a magnitude must be above the first and not above the second, a uniform number not below
    uint64_t key[MOST];
    const void *ranks[MOST], *chances[MOST];  // of every element its rank; of every rank its limit and its growth, side by side
    int32_t long_ranks;
};

}  // extern "C"

namespace {

template <class C>
struct Block {
    alignas(64) C base[BLOCK], votes[MOST][BLOCK], merged[BLOCK];
    alignas(64) C factor[BLOCK], sign[BLOCK], divisor[BLOCK];
    alignas(64) float uniform[BLOCK], staged[BLOCK];
};

template <class C, class T, class Do>
inline void each(const T *from, int count, Do &&todo) {
    for (int i = 0; i < count; ++i) todo(i, C(wide(from[i])));
}

// Calls todo(i, value) for every element of a block, whatever its dtype.
template <class C, class Do>
inline void read(const void *tensor, int32_t kind, int64_t start, int count, float *staged, Do &&todo) {
    switch (kind) {
        case FLOAT32: return each<C>(static_cast<const float *>(tensor) + start, count, todo);
        case FLOAT64: return each<C>(static_cast<const double *>(tensor) + start, count, todo);
        case BFLOAT16: return each<C>(static_cast<const bfloat16 *>(tensor) + start, count, todo);
        case FLOAT16:
            halves_to_floats(static_cast<const uint16_t *>(tensor) + start, count, staged);
            return each<C>(staged, count, todo);
    }
}

template <class C, class T>
inline void write(const C *from, int count, T *to) {
    for (int i = 0; i < count; ++i) narrow(from[i], to[i]);
}

template <class C>
void write(const C *from, int count, void *tensor, int32_t kind, int64_t start, float *staged) {
    switch (kind) {
        case FLOAT32: return write(from, count, static_cast<float *>(tensor) + start);
        case FLOAT64: return write(from, count, static_cast<double *>(tensor) + start);
        case BFLOAT16: return write(from, count, static_cast<bfloat16 *>(tensor) + start);
        case FLOAT16:
            write(from, count, staged);
            return floats_to_halves(staged, count, static_cast<uint16_t *>(tensor) + start);
    }
}

template <class C>
void load_base(const Job &job, int64_t start, int count, Block<C> &block) {
    C *__restrict base = block.base;
    if (job.base) read<C>(job.base, job.base_kind, start, count, block.staged, [=](int i, C x) { base[i] = x; });
}

// What each element is multiplied by: its rank's growth, or 0 where its number is below its rank's limit.
template <class C, class Rank>
void spare(const Rank *__restrict ranks, const void *chances, int count, const float *__restrict uniform, C *__restrict factor) {
    const C *__restrict chance = static_cast<const C *>(chances);
    for (int i = 0; i < count; ++i) {
        const C limit = chance[2 * int64_t(ranks[i])], growth = chance[2 * int64_t(ranks[i]) + 1];
        factor[i] = C(uniform[i]) >= limit ? growth : C(0);
    }
}

// What is kept of one delta, zero elsewhere, times `voice`; to be added to what is there, if asked.
template <bool ADD, class C>
void vote(const Job &job, int k, int64_t start, int count, C voice, Block<C> &block, C *__restrict votes) {
    const auto every = [&](auto &&kept) {
        const void *source = job.sources[k];
        const int32_t kind = job.source_kinds[k];
        const C *__restrict base = block.base;
        const auto put = [=](int i, C x) { votes[i] = ADD ? votes[i] + x : x; };
        if (job.subtract)
            read<C>(source, kind, start, count, block.staged, [=](int i, C x) { put(i, kept(i, x - base[i]) * voice); });
        else
            read<C>(source, kind, start, count, block.staged, [=](int i, C x) { put(i, kept(i, x) * voice); });
    };
    const float limit = job.limit[k];
    const int before = int(start % 4);  // random numbers come four at a time
    const float *__restrict uniform = block.uniform + before;
    switch (job.keep) {
        case ALL: return every([=](int, C delta) { return delta; });
        case TRIM: return every([=](int, C delta) { return (float(std::fabs(delta)) > limit ? C(1) : C(0)) * delta; });
        case BAND: {
            const float upper = job.upper[k];
            return every([=](int, C delta) {
                const float size = float(std::fabs(delta));
                return ((size > limit) & !(size > upper) ? C(1) : C(0)) * delta;
            });
        }
        case RANK:
            draw(job.key[k], start - before, count + before, block.uniform);
            if (job.long_ranks) spare<C>(static_cast<const int32_t *>(job.ranks[k]) + start, job.chances[k], count, uniform, block.factor);
            else spare<C>(static_cast<const int16_t *>(job.ranks[k]) + start, job.chances[k], count, uniform, block.factor);
            return every([factor = block.factor](int i, C delta) { return factor[i] * delta; });
        case DROP:
            draw(job.key[k], start - before, count + before, block.uniform);
            return every([=](int i, C delta) { return (uniform[i] >= limit ? C(1) : C(0)) * delta; });
    }
}

constexpr double NOTHING = -0.0;  // what changes nothing it is added to

// Σ of the votes, one source after the other, none of them kept.
template <class C>
void add(const Job &job, int64_t start, int count, Block<C> &block) {
    for (int i = 0; i < count; ++i) block.merged[i] = C(NOTHING);
    for (int k = 0; k < job.count; ++k) vote<true>(job, k, start, count, C(job.voice[k]), block, block.merged);
}

// Σ of what has the elected sign at one position: TIES, steps 2 and 3 (Yadav et al. 2023).
template <bool NORMALIZE, class C>
struct Poll {
    C agreed = C(NOTHING), divisor = C(NOTHING);

    inline void count(C vote, C sign, C factor, C part) {
        const C share = vote * sign < 0 ? C(0) : vote * sign;  // a NaN stays one
        agreed += share * factor;
        if (NORMALIZE) divisor += (share > 0 ? C(1) : C(0)) * part;
    }
    inline C result(C sign, C scale) const {
        C total = agreed * sign;
        if (NORMALIZE) total /= divisor == 0 ? C(1) : divisor;
        return total * scale;
    }
};

// What an election multiplies by: `factor` a share in the sum, `part` a vote in the divisor.
template <class C>
struct Terms {
    C factor[MOST], part[MOST], scale, least;

    explicit Terms(const Job &job) : scale(C(job.scale)), least(job.tie > 0 ? C(0) : std::numeric_limits<C>::denorm_min()) {
        for (int k = 0; k < job.count; ++k) {
            factor[k] = job.weighted ? C(1) : C(job.weight[k]);
            part[k] = job.weighted ? C(job.weight[k]) : C(1);
        }
    }
    inline C sign(C sum) const { return sum >= least ? C(1) : C(-1); }
};

// Of K sources, all votes of a position in registers; compilers give that up at five or more.
template <int K, bool NORMALIZE, class C>
void elect_few(const Job &job, int count, Block<C> &block) {
    const Terms<C> terms(job);
    for (int i = 0; i < count; ++i) {
        C sum = block.votes[0][i];
        for (int k = 1; k < K; ++k) sum += block.votes[k][i];
        const C sign = terms.sign(sum);
        Poll<NORMALIZE, C> poll;
        for (int k = 0; k < K; ++k) poll.count(block.votes[k][i], sign, terms.factor[k], terms.part[k]);
        block.merged[i] = poll.result(sign, terms.scale);
    }
}

// Of any number of sources, one after the other.
template <bool NORMALIZE, class C>
void elect_many(const Job &job, int count, Block<C> &block) {
    const Terms<C> terms(job);
    C *__restrict sign = block.sign, *__restrict agreed = block.merged, *__restrict divisor = block.divisor;
    for (int i = 0; i < count; ++i) sign[i] = block.votes[0][i], agreed[i] = divisor[i] = C(NOTHING);
    for (int k = 1; k < job.count; ++k)
        for (int i = 0; i < count; ++i) sign[i] += block.votes[k][i];
    for (int i = 0; i < count; ++i) sign[i] = terms.sign(sign[i]);
    for (int k = 0; k < job.count; ++k) {
        const C *__restrict votes = block.votes[k];
        const C factor = terms.factor[k], part = terms.part[k];
        for (int i = 0; i < count; ++i) {
            Poll<NORMALIZE, C> poll{agreed[i], divisor[i]};
            poll.count(votes[i], sign[i], factor, part);
            agreed[i] = poll.agreed, divisor[i] = poll.divisor;
        }
    }
    for (int i = 0; i < count; ++i) agreed[i] = Poll<NORMALIZE, C>{agreed[i], divisor[i]}.result(sign[i], terms.scale);
}

template <bool NORMALIZE, class C>
void elect(const Job &job, int64_t start, int count, Block<C> &block) {
    for (int k = 0; k < job.count; ++k) vote<false>(job, k, start, count, C(job.voice[k]), block, block.votes[k]);
    switch (job.count) {
        case 1: return elect_few<1, NORMALIZE>(job, count, block);
        case 2: return elect_few<2, NORMALIZE>(job, count, block);
        case 3: return elect_few<3, NORMALIZE>(job, count, block);
        case 4: return elect_few<4, NORMALIZE>(job, count, block);
        default: return elect_many<NORMALIZE>(job, count, block);
    }
}

template <class C>
void blend(const Job &job, int64_t start, int count, Block<C> &block) {
    load_base(job, start, count, block);
    if (!job.elect) return add(job, start, count, block);
    return job.normalize ? elect<true>(job, start, count, block) : elect<false>(job, start, count, block);
}

// Asks for a block of every tensor that is read: so many streams, a kilobyte of each at a time, the processor does not foresee.
void foresee(const Job &job, int64_t start) {
    const auto ask = [start](const void *tensor, int32_t kind) {
        const int64_t size = kind == FLOAT64 ? 8 : kind == FLOAT32 ? 4 : 2;
        const char *first = static_cast<const char *>(tensor) + start * size;
        for (int64_t i = 0; i < BLOCK * size; i += 64) __builtin_prefetch(first + i);
    };
    if (start >= job.stop) return;
    if (job.base) ask(job.base, job.base_kind);
    for (int k = 0; k < job.count; ++k) ask(job.sources[k], job.source_kinds[k]);
}

template <class C>
void merge(const Job &job, int64_t start, int count, Block<C> &block) {
    blend(job, start, count, block);
    if (job.base)
        for (int i = 0; i < count; ++i) block.merged[i] += block.base[i];
    write(block.merged, count, job.merged, job.merged_kind, start, block.staged);
}

template <class Do>
void blocks(const Job &job, Do &&todo) {
    for (int64_t start = job.start; start < job.stop;) {
        const int64_t room = BLOCK - start % BLOCK;
        const int count = int(job.stop - start < room ? job.stop - start : room);
        todo(start, count);
        start += count;
    }
}

template <class C>
void combine(const Job &job) {
    Block<C> block;
    blocks(job, [&](int64_t start, int count) {
        foresee(job, start + BLOCK);
        merge(job, start, count, block);
    });
}

// What is kept of each delta.
template <class C>
void kept(const Job &job) {
    Block<C> block;
    C *to = static_cast<C *>(job.merged);
    blocks(job, [&](int64_t start, int count) {
        load_base(job, start, count, block);
        for (int k = 0; k < job.count; ++k)
            vote<false>(job, k, start, count, C(1), block, to + k * job.stride + (start - job.origin));
    });
}

// Σ of the signs of the sum of the votes; a NaN has none.
template <class C>
double balance(const Job &job) {
    Block<C> block;
    int64_t signs = 0;
    blocks(job, [&](int64_t start, int count) {
        blend(job, start, count, block);
        int32_t sum = 0;
        for (int i = 0; i < count; ++i) sum += (block.merged[i] > 0) - (block.merged[i] < 0);
        signs += sum;
    });
    return double(signs);
}

// The magnitudes of the one delta, a block at a time.
template <class C, class Do>
void magnitudes(const Job &job, Do &&todo) {
    Block<C> block;
    blocks(job, [&](int64_t start, int count) {
        load_base(job, start, count, block);
        vote<false>(job, 0, start, count, C(1), block, block.votes[0]);
        for (int i = 0; i < count; ++i) block.uniform[i] = float(std::fabs(block.votes[0][i]));
        todo(start, count, block.uniform);
    });
}

// How many magnitudes lie in each bin, in four tables [4, 2¹⁵]: neighbours often share a bin, and would wait for each other.
template <class C>
void counts(const Job &job, int64_t *tables) {
    magnitudes<C>(job, [=](int64_t, int count, const float *sizes) {
        for (int i = 0; i < count; ++i) ++tables[((i & 3) << 15) + (bits<uint32_t>(sizes[i]) >> 16)];
    });
}

// The elements of one bin by position; there is room for one more than there are.
template <class C>
void members(const Job &job, uint32_t bin, float *sizes, int64_t *positions) {
    int64_t found = 0;
    magnitudes<C>(job, [&](int64_t start, int count, const float *all) {
        for (int i = 0; i < count; ++i) {
            sizes[found] = all[i], positions[found] = start + i;
            found += bits<uint32_t>(all[i]) >> 16 == bin;
        }
    });
}

// The magnitudes of RUN neighbours every `step` elements, fewer where the tensor ends.
constexpr int RUN = 16;

template <class C>
void sample(const Job &whole, int64_t step, float *sizes) {
    Job job = whole;
    for (job.start = whole.start; job.start < whole.stop; job.start += step, sizes += RUN) {
        job.stop = job.start + RUN < whole.stop ? job.start + RUN : whole.stop;
        magnitudes<C>(job, [&](int64_t start, int count, const float *all) {
            std::memcpy(sizes + (start - job.start), all, sizeof(float) * size_t(count));
        });
    }
}

// Those of a block's words that are from `low` to `high`, and where they stand; there is room for a block more than there are.
int between(const int32_t *words, int count, int32_t low, int32_t high, int32_t start, int32_t *found, int32_t *positions) {
    int i = 0, many = 0;
#ifdef __AVX512F__
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (; i + 16 <= count; i += 16) {
        const __m512i word = _mm512_loadu_si512(words + i), place = _mm512_add_epi32(lanes, _mm512_set1_epi32(start + i));
        const __mmask16 mask = _mm512_cmpge_epi32_mask(word, _mm512_set1_epi32(low)) &
                               _mm512_cmple_epi32_mask(word, _mm512_set1_epi32(high));
        _mm512_storeu_si512(found + many, _mm512_maskz_compress_epi32(mask, word));
        _mm512_storeu_si512(positions + many, _mm512_maskz_compress_epi32(mask, place));
        many += __builtin_popcount(mask);
    }
#endif
    for (; i < count; ++i) {
        found[many] = words[i], positions[many] = start + i;
        many += (words[i] >= low) & (words[i] <= high);
    }
    return many;
}

// The magnitudes whose bits are from `low` to `high`, by position, until there is no room; how many are above, and between.
template <class C>
void between(const Job &job, int32_t low, int32_t high, int64_t room, int32_t *sizes, int32_t *positions, int64_t *told) {
    int64_t above = 0, found = 0;
    magnitudes<C>(job, [&](int64_t start, int count, const float *all) {
        alignas(64) int32_t words[BLOCK];
        std::memcpy(words, all, sizeof(float) * size_t(count));
        int32_t larger = 0;
        for (int i = 0; i < count; ++i) larger += words[i] > high;
        above += larger;
        if (found + BLOCK <= room) found += between(words, count, low, high, int32_t(start), sizes + found, positions + found);
        else found = room;
    });
    told[0] = above, told[1] = found;
}

// Σ xᵢyᵢ over a block, in LANES sums that are added to those of the blocks before: an order that no processor changes.
constexpr int LANES = 32;

void accumulate(const double *__restrict x, const double *__restrict y, double *__restrict sums) {
    double lanes[LANES];
    for (int l = 0; l < LANES; ++l) lanes[l] = sums[l];
    for (int i = 0; i < BLOCK; i += LANES)
        for (int l = 0; l < LANES; ++l) lanes[l] += x[i + l] * y[i + l];
    for (int l = 0; l < LANES; ++l) sums[l] = lanes[l];
}

// ⟨δᵢ, δⱼ⟩ of every row of `width` elements, [R, K, K].
template <class C>
void gram(const Job &job, int64_t width, double *products) {
    Block<C> block;
    alignas(64) static thread_local double wide_votes[MOST][BLOCK], sums[MOST * MOST][LANES];
    const int K = job.count;
    for (int64_t first = job.start; first < job.stop; first += width, products += K * K) {
        const int64_t last = job.stop - first < width ? job.stop : first + width;
        std::memset(sums, 0, sizeof(double) * LANES * size_t(K) * size_t(K));
        for (int64_t start = first; start < last; start += BLOCK) {
            const int count = int(last - start < BLOCK ? last - start : BLOCK);
            load_base(job, start, count, block);
            for (int k = 0; k < K; ++k) {
                vote<false>(job, k, start, count, C(1), block, block.votes[k]);
                for (int i = 0; i < count; ++i) wide_votes[k][i] = double(block.votes[k][i]);
                for (int i = count; i < BLOCK; ++i) wide_votes[k][i] = 0;
            }
            for (int i = 0; i < K; ++i)
                for (int j = i; j < K; ++j) accumulate(wide_votes[i], wide_votes[j], sums[i * K + j]);
        }
        for (int i = 0; i < K; ++i)
            for (int j = i; j < K; ++j) {
                double total = 0;
                for (int l = 0; l < LANES; ++l) total += sums[i * K + j][l];
                products[i * K + j] = products[j * K + i] = total;
            }
    }
}

// A merge whose voices differ from row to row: those of row r are coefficients[r * K …].
template <class C>
void mix(const Job &whole, const C *coefficients, int64_t width) {
    Job job = whole;
    for (int64_t row = whole.start / width; row * width < whole.stop; ++row) {
        job.start = row * width, job.stop = job.start + width;
        for (int k = 0; k < job.count; ++k) job.voice[k] = double(coefficients[row * job.count + k]);
        combine<C>(job);
    }
}

// Where each magnitude stands in its row, from the smallest, 0; equal ones by position. A radix sort of float32 by their bits.
constexpr int DIGIT = 11;  // bits of one pass: three make up a magnitude

template <class Rank>
void rank_row(const uint32_t *sizes, int64_t width, uint32_t *one, uint32_t *other, Rank *ranks) {
    static thread_local uint32_t counts[3][1 << DIGIT];
    std::memset(counts, 0, sizeof counts);
    for (int64_t i = 0; i < width; ++i)
        for (int pass = 0; pass < 3; ++pass) ++counts[pass][sizes[i] >> (DIGIT * pass) & ((1 << DIGIT) - 1)];
    for (int64_t i = 0; i < width; ++i) one[i] = uint32_t(i);
    for (int pass = 0; pass < 3; ++pass) {
        uint32_t *count = counts[pass], begin = 0;
        for (int digit = 0; digit < 1 << DIGIT; ++digit) {
            const uint32_t here = count[digit];
            count[digit] = begin, begin += here;
        }
        for (int64_t i = 0; i < width; ++i) other[count[sizes[one[i]] >> (DIGIT * pass) & ((1 << DIGIT) - 1)]++] = one[i];
        uint32_t *sorted = other;
        other = one, one = sorted;
    }
    for (int64_t i = 0; i < width; ++i) ranks[one[i]] = Rank(i);
}

template <class C>
void ranks(const Job &job, int64_t width, uint32_t *room) {  // room for three rows
    Block<C> block;
    for (int64_t first = job.start; first < job.stop; first += width) {
        for (int64_t start = first; start < first + width; start += BLOCK) {
            const int count = int(first + width - start < BLOCK ? first + width - start : BLOCK);
            load_base(job, start, count, block);
            vote<false>(job, 0, start, count, C(1), block, block.votes[0]);
            for (int i = 0; i < count; ++i) room[start - first + i] = bits<uint32_t>(float(std::fabs(block.votes[0][i])));
        }
        if (job.long_ranks) rank_row(room, width, room + width, room + 2 * width, static_cast<int32_t *>(job.merged) + first);
        else rank_row(room, width, room + width, room + 2 * width, static_cast<int16_t *>(job.merged) + first);
    }
}

// Whether no element is NaN or infinite: whether none has all bits of its exponent set.
template <class Word>
bool sound(const Job &job, Word exponent) {
    const Word *words = static_cast<const Word *>(job.sources[0]);
    bool all = true;
    blocks(job, [&](int64_t start, int count) {
        Word odd = 0;
        for (int i = 0; i < count; ++i) odd |= Word((words[start + i] & exponent) == exponent);
        all &= !odd;
    });
    return all;
}

}  // namespace

extern "C" {
int32_t all_finite(const Job *job) {
    switch (job->source_kinds[0]) {
        case FLOAT64: return sound<uint64_t>(*job, 0x7FF0000000000000u);
        case FLOAT32: return sound<uint32_t>(*job, 0x7F800000u);
        case BFLOAT16: return sound<uint16_t>(*job, 0x7F80u);
        default: return sound<uint16_t>(*job, 0x7C00u);
    }
}
void gram_float32(const Job *job, int64_t width, double *products) { gram<float>(*job, width, products); }
void mix_float32(const Job *job, const float *coefficients, int64_t width) { mix<float>(*job, coefficients, width); }
void mix_float64(const Job *job, const double *coefficients, int64_t width) { mix<double>(*job, coefficients, width); }
void ranks_float32(const Job *job, int64_t width, uint32_t *room) { ranks<float>(*job, width, room); }
void ranks_float64(const Job *job, int64_t width, uint32_t *room) { ranks<double>(*job, width, room); }
void counts_float32(const Job *job, int64_t *tables) { counts<float>(*job, tables); }
void counts_float64(const Job *job, int64_t *tables) { counts<double>(*job, tables); }
void members_float32(const Job *job, uint32_t bin, float *sizes, int64_t *to) { members<float>(*job, bin, sizes, to); }
void members_float64(const Job *job, uint32_t bin, float *sizes, int64_t *to) { members<double>(*job, bin, sizes, to); }
void sample_float32(const Job *job, int64_t step, float *sizes) { sample<float>(*job, step, sizes); }
void sample_float64(const Job *job, int64_t step, float *sizes) { sample<double>(*job, step, sizes); }
void between_float32(const Job *job, int32_t low, int32_t high, int64_t room, int32_t *sizes, int32_t *positions, int64_t *told) {
    between<float>(*job, low, high, room, sizes, positions, told);
}
void between_float64(const Job *job, int32_t low, int32_t high, int64_t room, int32_t *sizes, int32_t *positions, int64_t *told) {
    between<double>(*job, low, high, room, sizes, positions, told);
}
void combine_float32(const Job *job) { combine<float>(*job); }
void combine_float64(const Job *job) { combine<double>(*job); }
void kept_float32(const Job *job) { kept<float>(*job); }
void kept_float64(const Job *job) { kept<double>(*job); }
double balance_float32(const Job *job) { return balance<float>(*job); }
double balance_float64(const Job *job) { return balance<double>(*job); }

// Asks for huge pages before a new tensor is first written to: 2 MB at a time, its pages cost more than the merge.
void huge_pages(void *tensor, int64_t bytes) {
#if defined(__linux__)
    constexpr uintptr_t PAGE = 1 << 21;
    const uintptr_t begin = (reinterpret_cast<uintptr_t>(tensor) + PAGE - 1) / PAGE * PAGE;
    const uintptr_t end = (reinterpret_cast<uintptr_t>(tensor) + uintptr_t(bytes)) / PAGE * PAGE;
    if (begin < end) madvise(reinterpret_cast<void *>(begin), end - begin, MADV_HUGEPAGE);
#else
    (void)tensor, (void)bytes;
#endif
}
}

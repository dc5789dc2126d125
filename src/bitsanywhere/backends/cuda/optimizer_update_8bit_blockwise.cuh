// optimizer_update_8bit_blockwise: one step of many tensors with 8-bit states (math:
// optimizer_rules.cuh; codes: optimizer_codec.cuh).
//
// A warp takes a block of 256 elements, eight a lane, so that a block's absmax takes one reduction
// over the warp. Each thread block first makes the tables of its codebooks in shared memory: values
// by code, COPIES times against bank conflicts, and codes by value.
#include "optimizer_codec.cuh"
#include "optimizer_tensors.cuh"
//
#include "output.cuh"

#define TWO_STATES (RULE == ADAM || RULE == ADEMAMIX)
#define MAPS (TWO_STATES ? 2 : 1)
#define COPIES (1u << (COPY_SHIFT - 2))

// The codebooks of both states. Entries of the first one are those of a bucket's positive and negative
// values side by side; the second one, of squares, has none for negative values.
struct Tables {
  float values[MAPS][256 * COPIES];
  u32 entries[(MAPS + 1) * BUCKETS];
  float starts[MAPS][256];
  u32 zero[MAPS];
  int exact[MAPS];
};

// Entries that a thread makes, one after the other.
#define RUN ((BUCKETS + THREADS / (MAPS + 1) - 1) / (THREADS / (MAPS + 1)))
static_assert(THREADS >= 256 * MAPS && COPIES % 4 == 0, "make_tables");

INLINE void make_tables(Tables& tables, const float* qmap1, const float* qmap2) {
  for (u32 map = 0; map < MAPS; map++) {
    const float* code = map ? qmap2 : qmap1;
    for (u32 i = threadIdx.x; i < 64 * COPIES; i += THREADS) {
      float value = code[i * 4 / COPIES];
      reinterpret_cast<float4*>(tables.values[map])[i] = make_float4(value, value, value, value);
    }
  }
  // A code of one of the maps.
  u32 own = threadIdx.x / 256, c = threadIdx.x % 256;
  const float* code = own ? qmap2 : qmap1;
  if (own < MAPS) tables.starts[own][c] = start8(code, c);
  bool below = own < MAPS && c < 255 && midpoint8(code, c) < 0.0;
#pragma unroll
  for (u32 map = 0; map < MAPS; map++) {
    // The code nearest to zero, the lower one on a tie.
    u32 zero = __syncthreads_count(below && own == map);
    if (threadIdx.x == 0) tables.zero[map] = zero, tables.exact[map] = 1;
  }
  __syncthreads();
  // Entries of the first map's positive values, its negative ones, or the second map.
  u32 part = threadIdx.x % (MAPS + 1), first = threadIdx.x / (MAPS + 1) * RUN, map = part / 2;
  Entries entries(tables.starts[map], tables.zero[map], part == 1, min(first, BUCKETS - 1));
#pragma unroll 1
  for (u32 bucket = first; bucket < min(first + RUN, BUCKETS); bucket++)
    tables.entries[map ? 2 * BUCKETS + bucket : 2 * bucket + part] = entries.next(bucket);
  if (!entries.exact) tables.exact[map] = 0;
  __syncthreads();
}

// A lane's part of a block.
struct Place {
  i64 n, from;  // elements of the tensor; the lane's first
  u32 own, blocks;
  bool whole;

  INLINE Place(const Tensor& t, u32 block)
      : n(t.count), own(block - t.begin), blocks((u32)((n + BLOCKSIZE - 1) / BLOCKSIZE)) {
    from = (i64)own * BLOCKSIZE + threadIdx.x % 32 * 8, whole = own < t.whole;
  }
};

#define EIGHT_WORDS (DTYPE == 0 ? 8 : 4)

// Eight elements, as they are in memory.
struct Eight {
  u32 words[EIGHT_WORDS];

  INLINE float operator[](int i) const {
#if DTYPE == 0
    return float_of(words[i]);
#else
    return to_float((u16)(words[i / 2] >> i % 2 * 16));
#endif
  }
};

// Eight elements from index first on; beyond n they are 0. Loads without a cache hint measured
// fastest (H100), and stores too.
INLINE Eight load_eight(const Element* x, i64 first, i64 n, bool whole) {
  Eight v;
  if (whole) {
    const uint4* source = reinterpret_cast<const uint4*>(x + first);
#pragma unroll
    for (int i = 0; i < EIGHT_WORDS / 4; i++) {
      uint4 part = source[i];
      v.words[4 * i] = part.x, v.words[4 * i + 1] = part.y;
      v.words[4 * i + 2] = part.z, v.words[4 * i + 3] = part.w;
    }
    return v;
  }
#pragma unroll
  for (int i = 0; i < EIGHT_WORDS; i++) {
    i64 at = first + i * 8 / EIGHT_WORDS;
    v.words[i] = at < n ? x[at] : 0u;
#if DTYPE != 0
    if (at + 1 < n) v.words[i] |= (u32)x[at + 1] << 16;
#endif
  }
  return v;
}

// Eight codes from index first on; beyond n they are 0.
INLINE uint2 load_codes(const u8* codes, i64 first, i64 n, bool whole) {
  if (whole) return *reinterpret_cast<const uint2*>(codes + first);
  u32 words[2] = {0, 0};
#pragma unroll
  for (int i = 0; i < 8; i++)
    if (first + i < n) words[i / 4] |= (u32)codes[first + i] << i % 4 * 8;
  return make_uint2(words[0], words[1]);
}

// The values of a lane's codes; 0 behind the end of the tensor.
INLINE void decode(const float* table, uint2 codes, float absmax, const Place& at, float (&x)[8]) {
  const char* bytes = reinterpret_cast<const char*>(table);
#pragma unroll
  for (int i = 0; i < 8; i++) {
    // The code times 4 * COPIES, by one shift.
    u32 word = i < 4 ? codes.x : codes.y;
    int left = COPY_SHIFT - i % 4 * 8;
    u32 row = (left > 0 ? word << left : word >> -left) & 255u << COPY_SHIFT;
    x[i] = mul_rn(*reinterpret_cast<const float*>(bytes + (row | threadIdx.x % COPIES * 4)), absmax);
  }
  if (at.whole) return;
#pragma unroll
  for (int i = 0; i < 8; i++) x[i] = at.from + i < at.n ? x[i] : 0.0f;
}

INLINE float larger(float a, float b) {
#if __CUDA_ARCH__ >= 800
  float out;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(out) : "f"(a), "f"(b));
  return out;
#else
  return float_of(max(bits_of(a), bits_of(b)));
#endif
}

INLINE u32 warp_max(u32 x) {
#if __CUDA_ARCH__ >= 800
  u32 out;
  asm volatile("redux.sync.max.u32 %0, %1, 0xFFFFFFFF;" : "=r"(out) : "r"(x));
  return out;
#else
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x = max(x, __shfl_xor_sync(0xFFFFFFFFu, x, step));
  return x;
#endif
}

// The eight codes of a lane, and the absmax of its block, NaN if an element is.
template <bool SIGNED>
INLINE uint2 encode(const Tables& tables, int map, const float (&x)[8], float& absmax) {
  float largest = 0.0f;
#pragma unroll
  for (int i = 0; i < 8; i++) largest = larger(largest, fabsf(x[i]));
  absmax = float_of(warp_max(bits_of(largest)));
  float inverse = absmax > 0.0f ? fminf(__frcp_rn(absmax), 3.402823466e38f) : 0.0f;
  u32 words[2] = {0, 0};
  if (tables.exact[map]) {
    const u32* entries = tables.entries + (map ? 2 * BUCKETS : 0) - (SIGNED ? 2 : 1) * (int)FIRST_BUCKET;
#pragma unroll
    for (int i = 0; i < 8; i++) {
      float scaled = relative(x[i], inverse);
      u32 bits = lifted(SIGNED ? fabsf(scaled) : scaled), bucket = bits >> 16;
      u32 entry = entries[SIGNED ? __funnelshift_l(bits_of(scaled), bucket, 1) : bucket];
      // Byte 0 or 1 of the entry in the place of byte i % 4 of the word.
      u32 other = 0x3210u & ~(15u << i % 4 * 4);
      u32 chosen = other | (bits << 16 > entry ? 5u : 4u) << i % 4 * 4;
      words[i / 4] = __byte_perm(words[i / 4], entry, chosen);
    }
  } else {
#pragma unroll 1
    for (u32 step = 128; step > 0; step /= 2) {
#pragma unroll
      for (int i = 0; i < 8; i++) {
        u32 code = words[i / 4] >> i % 4 * 8 & 255u;
        if (tables.starts[map][code + step - 1] <= relative(x[i], inverse)) words[i / 4] += step << i % 4 * 8;
      }
    }
#pragma unroll
    for (int i = 0; i < 8; i++)
      if (relative(x[i], inverse) == 0.0f)
        words[i / 4] = words[i / 4] & ~(255u << i % 4 * 8) | tables.zero[map] << i % 4 * 8;
  }
  return make_uint2(words[0], words[1]);
}

// Quantizes the new values of a state.
template <bool SIGNED>
INLINE void store(const Tables& tables, int map, const float (&x)[8], u8* codes, float* absmax, const Place& at) {
  float largest;
  uint2 words = encode<SIGNED>(tables, map, x, largest);
  if (threadIdx.x % 32 == 0) absmax[at.own] = largest;
  if (at.whole) {
    *reinterpret_cast<uint2*>(codes + at.from) = words;
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; i++)
    if (at.from + i < at.n) codes[at.from + i] = (u8)((i < 4 ? words.x : words.y) >> i % 4 * 8);
}

// What a lane reads of a block.
struct Loaded {
  Eight g, p;
  uint2 codes1, slow_codes, codes2;
  float absmax1, slow_absmax, absmax2;
};

INLINE Loaded load(const Tensor& t, u32 block) {
  Place at(t, block);
  const u8 *state1 = static_cast<const u8*>(t.state1), *state2 = static_cast<const u8*>(t.state2);
  Loaded x;
#pragma unroll
  for (int way = 0; way < 2; way++) {
    bool whole = way == 0;
    if (whole != at.whole) continue;
    x.g = load_eight(t.g, at.from, at.n, whole), x.p = load_eight(t.p, at.from, at.n, whole);
    x.codes1 = load_codes(state1, at.from, at.n, whole);
    if (RULE == ADEMAMIX) x.slow_codes = load_codes(state1 + at.n, at.from, at.n, whole);
    if (TWO_STATES) x.codes2 = load_codes(state2, at.from, at.n, whole);
  }
  x.absmax1 = t.absmax1[at.own];
  if (RULE == ADEMAMIX) x.slow_absmax = t.absmax1[at.blocks + at.own];
  if (TWO_STATES) x.absmax2 = t.absmax2[at.own];
  return x;
}

// Moves the elements of a block.
INLINE void update(const Tables& tables, const Settings& h, const Tensor& t, u32 block, const Loaded& x) {
  Place at(t, block);
  float first[8], slow[8], second[8], result[8];
  decode(tables.values[0], x.codes1, x.absmax1, at, first);
  if (RULE == ADEMAMIX) decode(tables.values[0], x.slow_codes, x.slow_absmax, at, slow);
  if (TWO_STATES) decode(tables.values[MAPS - 1], x.codes2, x.absmax2, at, second);
#pragma unroll
  for (int i = 0; i < 8; i++) {
    State state = {first[i], slow[i], second[i]};
    float g = x.g[i], p = x.p[i];
    bool kept = counts(g, h);
    float u = step(RULE, g, p, state, h);
    result[i] = kept ? shifted(p, u, h.times, h) : p;
    first[i] = kept ? state.first : first[i];
    slow[i] = kept ? state.slow : slow[i];
    second[i] = kept ? state.second : second[i];
  }
  store8(t.p, at.from, at.n, at.whole, result);
  u8 *state1 = static_cast<u8*>(t.state1), *state2 = static_cast<u8*>(t.state2);
  store<true>(tables, 0, first, state1, t.absmax1, at);
  if (RULE == ADEMAMIX) store<true>(tables, 0, slow, state1 + at.n, t.absmax1 + at.blocks, at);
  if (TWO_STATES) store<false>(tables, 1, second, state2, t.absmax2, at);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
optimizer_update_8bit_blockwise(const __grid_constant__ Tensors tensors,
                                const __grid_constant__ Settings h, const float* __restrict__ qmap1,
                                const float* __restrict__ qmap2, u32 blocks) {
  extern __shared__ uint4 shared[];
  Tables& tables = *reinterpret_cast<Tables*>(shared);
  make_tables(tables, qmap1, qmap2);
  // A block is loaded while the one before it is worked on.
  u32 warps = gridDim.x * (THREADS / 32), block = blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
  u32 next = 0, here = 0, loaded = blocks;
  Loaded x, ahead;
  do {
    if (block < blocks) {
      while (block >= tensors.list[next + 1].begin) next++;
      ahead = load(tensors.list[next], block);
    }
    if (loaded < blocks) update(tables, h, tensors.list[here], loaded, x);
    x = ahead, here = next, loaded = block, block += warps;
  } while (loaded < blocks);
}

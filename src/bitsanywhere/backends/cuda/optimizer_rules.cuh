// What an optimizer does to one element (math: ops/optimizer_rules.py). A host compiler accepts it.
//
// States are moved with every product and sum rounded to float32, as the reference does it, so that
// equal gradients give equal bits. The parameter's own change is rounded less strictly.
#pragma once
#include "convert.cuh"

#define ADAM 0
#define ADEMAMIX 1
#define MOMENTUM 2
#define RMSPROP 3
#define ADAGRAD 4
#define LION 5

// The numbers of a step, the same for all its elements (made by optimizer_tensors.py).
struct Settings {
  float beta1, rest1, beta2, rest2, beta3, rest3;  // rest: one minus beta
  float alpha, eps;
  float inverse1, inverse2;  // one over the bias corrections c1 and c2
  float weight_decay;        // what of the parameter joins the gradient
  float decay;               // what the parameter is multiplied with
  float times;               // what the update is multiplied with
  float gnorm_scale;
  float least;  // gradients of a magnitude above this one count
};

// A state of one element; what a rule does not have stays as it is.
struct State {
  float first, slow, second;
};

// Subnormals count as zero here: as sums of squares they are noise.
INLINE float root(float x) {
#ifdef __CUDA_ARCH__
  float out;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
  return out;
#else
  return std::sqrt(x);
#endif
}

// a / b for b of a magnitude below 2^126.
INLINE float quotient(float a, float b) {
#ifdef __CUDA_ARCH__
  float out;
  asm("div.approx.ftz.f32 %0, %1, %2;" : "=f"(out) : "f"(a), "f"(b));
  return out;
#else
  return a / b;
#endif
}

// old * beta + rest * fresh
INLINE float mix(float old, float beta, float fresh, float rest) {
  return add_rn(mul_rn(old, beta), mul_rn(rest, fresh));
}

INLINE float magnitude(float x) { return float_of(bits_of(x) & 0x7FFFFFFFu); }

INLINE float sign(float x) { return x > 0.0f ? 1.0f : x < 0.0f ? -1.0f : x; }

// Moves the state by a gradient and returns the update u.
INLINE float moved(int rule, float g, State& s, const Settings& h) {
  float square = mul_rn(g, g);
  switch (rule) {
    case ADAM:
      s.first = mix(s.first, h.beta1, g, h.rest1);
      s.second = mix(s.second, h.beta2, square, h.rest2);
      return quotient(s.first, root(s.second) + h.eps);
    case ADEMAMIX:
      s.first = mix(s.first, h.beta1, g, h.rest1);
      s.slow = mix(s.slow, h.beta3, g, h.rest3);
      s.second = mix(s.second, h.beta2, square, h.rest2);
      return quotient(s.first * h.inverse1 + h.alpha * s.slow, root(s.second) * h.inverse2 + h.eps);
    case MOMENTUM:
      s.first = add_rn(mul_rn(s.first, h.beta1), g);
      return s.first;
    case RMSPROP:
      s.first = mix(s.first, h.beta1, square, h.rest1);
      return quotient(g, root(s.first) + h.eps);
    case ADAGRAD:
      s.first = add_rn(s.first, square);
      return quotient(g, root(s.first) + h.eps);
    default:
      float u = sign(mix(s.first, h.beta1, g, h.rest1));
      s.first = mix(s.first, h.beta2, g, h.rest2);
      return u;
  }
}

// Whether a gradient moves anything: it is finite, and not a zero of those to be skipped.
INLINE bool counts(float g, const Settings& h) {
  return magnitude(g) > h.least && magnitude(g) < float_of(0x7F800000u);
}

// Moves the state of one element by its raw gradient, which counts, and returns its update u.
INLINE float step(int rule, float g, float p, State& state, const Settings& h) {
  float scaled = mul_rn(g, h.gnorm_scale);
  if (rule == MOMENTUM || rule == RMSPROP || rule == ADAGRAD)
    scaled = add_rn(scaled, mul_rn(h.weight_decay, p));
  return moved(rule, scaled, state, h);
}

// The parameter after an update u; times: h.times and the factor of clipping.
INLINE float shifted(float p, float u, float times, const Settings& h) { return p * h.decay - times * u; }

// Causal softmax attention on a CPU, forward and backward, without ever having all of its T x T weights.
//
// Queries go block by block past blocks of keys (arXiv 2205.14135); keys after the last query of a block are left out.
// Everything is packed into fp32 buffers first, heads padded to whole columns of a tile, so that one small product of
// matrices with constant sizes inside serves all seven products. Results do not depend on the number of threads. Plain C
// to its caller (ops/cpu_attention.py, through ctypes).

#include <algorithm>
#include <cmath>
#include <vector>

#include "numbers.h"

namespace {

typedef float Lanes __attribute__((vector_size(32), aligned(4), may_alias));
const Size WIDE = 8, COLUMNS = 2 * WIDE;  // of a tile of the product, in registers
const Size QUERIES = 48, KEYS = 256;      // of a block: its weights stay in the second cache

inline Size padded(Size n) { return (n + COLUMNS - 1) / COLUMNS * COLUMNS; }

inline Lanes lanes(const float* x) { return *reinterpret_cast<const Lanes*>(x); }

// A left operand: element (i, k) at data[i * row + k * step].
struct Left {
    const float* data;
    Size row, step;
};

// C[i][0..16) += sum over k of A(i, k) B[k][0..16), for M rows.
template <int M>
inline void tile(Size depth, Left a, const float* b, float* c, Size ldc, bool add) {
    Lanes sums[M][2] = {};
    for (Size k = 0; k < depth; ++k) {
        Lanes one = lanes(b + k * COLUMNS), two = lanes(b + k * COLUMNS + WIDE);
        const float* x = a.data + k * a.step;
#pragma GCC unroll 8
        for (int i = 0; i < M; ++i) {
            sums[i][0] += x[i * a.row] * one;
            sums[i][1] += x[i * a.row] * two;
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i)
        for (int half = 0; half < 2; ++half) {
            Lanes* to = reinterpret_cast<Lanes*>(c + i * ldc + half * WIDE);
            *to = add ? *to + sums[i][half] : sums[i][half];
        }
}

// C [m, n] = or += A B. B lies in panels of 16 columns, each [height, 16], of which the first `depth` rows count.
void product(Size m, Size n, Size depth, Left a, const float* b, Size height, float* c, Size ldc, bool add) {
    for (Size j = 0; j < n; j += COLUMNS) {
        const float* panel = b + j * height;
        for (Size i = 0; i < m;) {
            Left rows = {a.data + i * a.row, a.row, a.step};
            float* to = c + i * ldc + j;
            Size left = m - i;
            if (left >= 6) {
                tile<6>(depth, rows, panel, to, ldc, add), i += 6;
            } else if (left >= 4) {
                tile<4>(depth, rows, panel, to, ldc, add), i += 4;
            } else if (left >= 2) {
                tile<2>(depth, rows, panel, to, ldc, add), i += 2;
            } else {
                tile<1>(depth, rows, panel, to, ldc, add), i += 1;
            }
        }
    }
}

// Vectors of one head in memory, `width` values side by side and `token` from one to the next.
template <class T>
struct Head {
    T* data;
    Size token, width;

    T* at(Size t) const { return data + t * token; }
};

// As a right operand whose rows are tokens [first, last): panels of `height` rows.
template <class T>
void pack_rows(Head<const T> x, Size first, Size last, Size height, float by, float* to) {
    Size wide = padded(x.width);
    for (Size t = first; t < last; ++t)
        for (Size j = 0; j < wide; ++j)
            to[j / COLUMNS * COLUMNS * height + (t - first) * COLUMNS + j % COLUMNS] =
                j < x.width ? load(x.at(t)[j]) * by : 0.0f;
}

// As a right operand whose columns are tokens [first, last): panels of `width` rows.
template <class T>
void pack_columns(Head<const T> x, Size first, Size last, float* to) {
    for (Size t = first; t < first + padded(last - first); ++t) {
        float* panel = to + (t - first) / COLUMNS * COLUMNS * x.width + (t - first) % COLUMNS;
        for (Size j = 0; j < x.width; ++j) panel[j * COLUMNS] = t < last ? load(x.at(t)[j]) : 0.0f;
    }
}

// As a left operand [tokens, width].
template <class T>
void pack_left(Head<const T> x, Size first, Size last, float by, float* to) {
    for (Size t = first; t < last; ++t)
        for (Size j = 0; j < x.width; ++j) *to++ = load(x.at(t)[j]) * by;
}

template <class T>
void unpack(const float* from, Size wide, Head<T> x, Size first, Size last, float by) {
    for (Size t = first; t < last; ++t, from += wide)
        for (Size j = 0; j < x.width; ++j) store(x.at(t) + j, from[j] * by);
}

struct Place {
    Size batch, token, head;
};

// The call: B sequences of T tokens, N heads of queries, K of keys, H values each.
struct Call {
    Size B, T, N, K, H;
    Place q, k, v, grad;
    float scale;

    template <class X>
    Head<X> head(X* x, Place at, Size b, Size n) const {
        return {x + b * at.batch + n * at.head, at.token, H};
    }
    Place whole(Size heads) const { return {T * heads * H, heads * H, H}; }
};

// One head's keys and values as the products want them, block by block.
struct Packed {
    Size blocks, columns, rows;              // floats of a block, as columns and as rows
    std::vector<float> k_columns, k_rows, v_columns, v_rows;

    template <class T>
    Packed(const Call& at, Head<const T> k, Head<const T> v, bool backward) {
        blocks = (at.T + KEYS - 1) / KEYS;
        Size most = padded(std::min(at.T, KEYS));
        columns = most * at.H, rows = most * padded(at.H);
        fill(k, k_columns, columns, at.T, true);
        fill(v, v_rows, rows, at.T, false);
        if (!backward) return;
        fill(k, k_rows, rows, at.T, false);
        fill(v, v_columns, columns, at.T, true);
    }

    template <class T>
    void fill(Head<const T> x, std::vector<float>& to, Size size, Size tokens, bool as_columns) {
        to.resize(blocks * size);
        for (Size block = 0; block < blocks; ++block) {
            Size first = block * KEYS, last = std::min(tokens, first + KEYS);
            float* begin = to.data() + block * size;
            if (as_columns)
                pack_columns(x, first, last, begin);
            else
                pack_rows(x, first, last, padded(std::min(tokens, KEYS)), 1.0f, begin);
        }
    }
};

// exp(x - most) in place for the first `seen`, 0 for the rest; the sum.
inline float weigh(float* x, Size seen, Size all, float most) {
    float total = 0;
#pragma omp simd reduction(+ : total)
    for (Size i = 0; i < seen; ++i) {
        x[i] = exponential(x[i] - most);
        total += x[i];
    }
    std::fill(x + seen, x + all, 0.0f);
    return total;
}

inline float largest(const float* x, Size n, float most) {
#pragma omp simd reduction(max : most)
    for (Size i = 0; i < n; ++i) most = x[i] > most ? x[i] : most;
    return most;
}

template <class T>
inline float dot(const T* x, const float* y, Size n) {
    float total = 0;
#pragma omp simd reduction(+ : total)
    for (Size i = 0; i < n; ++i) total += load(x[i]) * y[i];
    return total;
}

// How many of a block's keys query t sees.
inline Size seen(Size t, Size first, Size keys) { return std::max(Size(0), std::min(keys, t + 1 - first)); }

template <class T>
void forward_head(const Call& at, const Packed& kv, Head<const T> q, Head<T> out, float* lse) {
    Size H = at.H, wide = padded(H), height = padded(std::min(at.T, KEYS)), ld = height + COLUMNS;
    std::vector<float> queries(QUERIES * H), weights(QUERIES * ld), sums(QUERIES * wide), most(QUERIES), total(QUERIES);
    for (Size begin = 0; begin < at.T; begin += QUERIES) {
        Size end = std::min(at.T, begin + QUERIES), count = end - begin;
        pack_left(q, begin, end, at.scale, queries.data());
        std::fill(most.begin(), most.end(), -INFINITY);
        std::fill(total.begin(), total.end(), 0.0f);
        for (Size first = 0, block = 0; first < end; first += KEYS, ++block) {
            Size keys = std::min(KEYS, end - first);
            product(count, padded(keys), H, {queries.data(), H, 1}, kv.k_columns.data() + block * kv.columns, H,
                    weights.data(), ld, false);
            for (Size i = 0; i < count; ++i) {
                float* row = weights.data() + i * ld;
                Size here = seen(begin + i, first, keys);
                float before = most[i];
                most[i] = largest(row, here, before);
                float by = block ? exponential(before - most[i]) : 0.0f;
                total[i] = total[i] * by + weigh(row, here, keys, most[i]);
                if (block)
                    for (Size j = 0; j < wide; ++j) sums[i * wide + j] *= by;
            }
            product(count, wide, keys, {weights.data(), ld, 1}, kv.v_rows.data() + block * kv.rows, height,
                    sums.data(), wide, block > 0);
        }
        for (Size i = 0; i < count; ++i) {
            unpack(sums.data() + i * wide, wide, out, begin + i, begin + i + 1, 1.0f / total[i]);
            lse[begin + i] = most[i] + std::log(total[i]);
        }
    }
}

// Adds to grad_k and grad_v, [T, padded H] of the head of keys.
template <class T>
void backward_head(const Call& at, const Packed& kv, Head<const T> q, Head<const T> out, Head<const T> grad,
                   const float* lse, Head<T> grad_q, float* grad_k, float* grad_v) {
    Size H = at.H, wide = padded(H), height = padded(std::min(at.T, KEYS)), ld = height + COLUMNS;
    std::vector<float> queries(QUERIES * H), query_rows(QUERIES * wide), grads(QUERIES * H), grad_rows(QUERIES * wide);
    std::vector<float> weights(QUERIES * ld), slopes(QUERIES * ld), sums(QUERIES * wide), along(QUERIES);
    for (Size begin = 0; begin < at.T; begin += QUERIES) {
        Size end = std::min(at.T, begin + QUERIES), count = end - begin;
        pack_left(q, begin, end, at.scale, queries.data());
        pack_rows(q, begin, end, QUERIES, at.scale, query_rows.data());
        pack_left(grad, begin, end, 1.0f, grads.data());
        pack_rows(grad, begin, end, QUERIES, 1.0f, grad_rows.data());
        for (Size i = 0; i < count; ++i) along[i] = dot(out.at(begin + i), grads.data() + i * H, H);
        for (Size first = 0, block = 0; first < end; first += KEYS, ++block) {
            Size keys = std::min(KEYS, end - first);
            product(count, padded(keys), H, {queries.data(), H, 1}, kv.k_columns.data() + block * kv.columns, H,
                    weights.data(), ld, false);
            product(count, padded(keys), H, {grads.data(), H, 1}, kv.v_columns.data() + block * kv.columns, H,
                    slopes.data(), ld, false);
            for (Size i = 0; i < count; ++i) {
                float *p = weights.data() + i * ld, *s = slopes.data() + i * ld, less = along[i];
                Size here = seen(begin + i, first, keys);
                weigh(p, here, keys, lse[begin + i]);
#pragma omp simd
                for (Size j = 0; j < here; ++j) s[j] = p[j] * (s[j] - less);
                std::fill(s + here, s + keys, 0.0f);
            }
            product(keys, wide, count, {weights.data(), 1, ld}, grad_rows.data(), QUERIES, grad_v + first * wide, wide,
                    true);
            product(keys, wide, count, {slopes.data(), 1, ld}, query_rows.data(), QUERIES, grad_k + first * wide, wide,
                    true);
            product(count, wide, keys, {slopes.data(), ld, 1}, kv.k_rows.data() + block * kv.rows, height, sums.data(),
                    wide, block > 0);
        }
        unpack(sums.data(), wide, grad_q, begin, end, at.scale);
    }
}

template <class T>
void forward(const T* q, const T* k, const T* v, T* out, float* lse, const Call& at, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (Size item = 0; item < at.B * at.N; ++item) {
        Size b = item / at.N, n = item % at.N, shared = n / (at.N / at.K);
        Packed kv(at, at.head(k, at.k, b, shared), at.head(v, at.v, b, shared), false);
        forward_head(at, kv, at.head(q, at.q, b, n), at.head(out, at.whole(at.N), b, n), lse + item * at.T);
    }
}

template <class T>
void backward(const T* grad, const T* q, const T* k, const T* v, const T* out, const float* lse, T* grad_q, T* grad_k,
              T* grad_v, const Call& at, int threads) {
    Size group = at.N / at.K, wide = padded(at.H);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (Size item = 0; item < at.B * at.K; ++item) {
        Size b = item / at.K, n = item % at.K;
        Packed kv(at, at.head(k, at.k, b, n), at.head(v, at.v, b, n), true);
        std::vector<float> sums_k(at.T * wide), sums_v(at.T * wide);
        for (Size own = n * group; own < (n + 1) * group; ++own)
            backward_head(at, kv, at.head(q, at.q, b, own), at.head(out, at.whole(at.N), b, own),
                          at.head(grad, at.grad, b, own), lse + (b * at.N + own) * at.T,
                          at.head(grad_q, at.whole(at.N), b, own), sums_k.data(), sums_v.data());
        unpack(sums_k.data(), wide, at.head(grad_k, at.whole(at.K), b, n), 0, at.T, 1.0f);
        unpack(sums_v.data(), wide, at.head(grad_v, at.whole(at.K), b, n), 0, at.T, 1.0f);
    }
}

Call call_of(const Size* sizes, float scale) {
    Call at;
    std::memcpy(&at, sizes, 17 * sizeof(Size));
    at.scale = scale;
    return at;
}

}  // namespace

#define API extern "C" __attribute__((visibility("default"))) void
#define IN(T, x) static_cast<const T*>(x)
#define OUT(T, x) static_cast<T*>(x)

// low: queries, keys, values, results and gradients are bf16, else fp32. sizes: B T N K H, then the distances of
// sequences, tokens and heads of q, k, v and grad.

API ngpt_attention(int low, const void* q, const void* k, const void* v, void* out, float* lse, const Size* sizes,
                   float scale, int threads) {
    Call at = call_of(sizes, scale);
    if (low)
        forward(IN(bf16, q), IN(bf16, k), IN(bf16, v), OUT(bf16, out), lse, at, threads);
    else
        forward(IN(float, q), IN(float, k), IN(float, v), OUT(float, out), lse, at, threads);
}

API ngpt_attention_backward(int low, const void* grad, const void* q, const void* k, const void* v, const void* out,
                            const float* lse, void* grad_q, void* grad_k, void* grad_v, const Size* sizes, float scale,
                            int threads) {
    Call at = call_of(sizes, scale);
    if (low)
        backward(IN(bf16, grad), IN(bf16, q), IN(bf16, k), IN(bf16, v), IN(bf16, out), lse, OUT(bf16, grad_q),
                 OUT(bf16, grad_k), OUT(bf16, grad_v), at, threads);
    else
        backward(IN(float, grad), IN(float, q), IN(float, k), IN(float, v), IN(float, out), lse, OUT(float, grad_q),
                 OUT(float, grad_k), OUT(float, grad_v), at, threads);
}

// AdamW with the sums of squares that the projection needs, in one pass over memory; and the scaling.
//
// On the way, where asked to, both add up the bits of each vector, read as integers: the first those that it finds, the
// second those that it leaves (checksums.py). Integers wrap, so their sums depend on no order.
//
// A piece is a matrix [rows, cols] inside a longer tensor, its rows `stride` apart; master, gradient and both averages
// are laid out alike. Sums are taken in blocks of rows whose size depends on the shape alone, so that results do not
// depend on the number of threads. Plain C to its caller (fused_adamw.py, through ctypes).

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

typedef int64_t Size;
typedef uint32_t __attribute__((may_alias)) Word;  // the bits of a float

// which vectors are summed; as dimensions of the piece
enum Norm { COLUMNS = 0, ROWS = 1, NONE = 2 };

struct Rule {
    float first, second;      // decay of the two averages
    float step_size;          // lr / (1 - first^t)
    float correction;         // 1 / sqrt(1 - second^t)
    float eps, kept, scale;   // epsilon; 1 - lr * weight decay; what gradients are multiplied by
};

namespace {

const Size BLOCK = 32;    // rows whose squares a column adds up in fp32
const Size LANE = 1024;   // elements of a row, likewise

inline float update(float* w, float g, float* m, float* v, const Rule& r) {
    g *= r.scale;
    float average = *m + (1.0f - r.first) * (g - *m);
    float square = r.second * *v + (1.0f - r.second) * g * g;
    *m = average;
    *v = square;
    return *w = *w * r.kept - r.step_size * average / (std::sqrt(square) * r.correction + r.eps);
}

template <bool CHECKED>
double row(Size n, float* w, const float* g, float* m, float* v, const Rule& r, Word* bits) {
    double total = 0;
    Word found = 0;
    for (Size begin = 0; begin < n; begin += LANE) {
        Size end = std::min(n, begin + LANE);
        float sum = 0;
#pragma omp simd reduction(+ : sum, found)
        for (Size i = begin; i < end; ++i) {
            if (CHECKED) found += *reinterpret_cast<const Word*>(w + i);
            float x = update(w + i, g[i], m + i, v + i, r);
            sum += x * x;
        }
        total += sum;
    }
    if (CHECKED) *bits += found;
    return total;
}

template <bool CHECKED>
void row_of_columns(
    Size n, float* w, const float* g, float* m, float* v, const Rule& r, float* sums, Word* bits) {
#pragma omp simd
    for (Size i = 0; i < n; ++i) {
        if (CHECKED) bits[i] += *reinterpret_cast<const Word*>(w + i);
        float x = update(w + i, g[i], m + i, v + i, r);
        sums[i] += x * x;
    }
}

template <bool CHECKED>
void update_columns(
    float* w, const float* g, float* m, float* v, Size rows, Size cols, Size stride, float* squares, Word* bits,
    const Rule& r, int threads) {
    Size blocks = (rows + BLOCK - 1) / BLOCK;
    std::vector<float> sums(blocks * cols, 0.0f);
    std::vector<Word> found(CHECKED ? blocks * cols : 0, 0);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (Size b = 0; b < blocks; ++b)
        for (Size i = b * BLOCK; i < std::min(rows, (b + 1) * BLOCK); ++i) {
            Size at = i * stride;
            row_of_columns<CHECKED>(
                cols, w + at, g + at, m + at, v + at, r, sums.data() + b * cols, found.data() + CHECKED * b * cols);
        }
#pragma omp parallel for num_threads(threads) schedule(static)
    for (Size i = 0; i < cols; ++i) {
        double total = 0;
        for (Size b = 0; b < blocks; ++b) {
            total += sums[b * cols + i];
            if (CHECKED) bits[i] += found[b * cols + i];
        }
        squares[i] += float(total);
    }
}

template <bool CHECKED>
void update_rows(
    float* w, const float* g, float* m, float* v, Size rows, Size cols, Size stride, float* squares, Word* bits,
    const Rule& r, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (Size i = 0; i < rows; ++i) {
        Size at = i * stride;
        double total = row<CHECKED>(cols, w + at, g + at, m + at, v + at, r, CHECKED ? bits + i : nullptr);
        if (squares) squares[i] += float(total);
    }
}

template <bool CHECKED>
void scale_rows(float* w, Size rows, Size cols, Size stride, const float* factor, Word* bits, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (Size i = 0; i < rows; ++i) {
        float* x = w + i * stride;
        float f = factor[i];
        Word left = 0;
#pragma omp simd reduction(+ : left)
        for (Size j = 0; j < cols; ++j) {
            x[j] *= f;
            if (CHECKED) left += *reinterpret_cast<const Word*>(x + j);
        }
        if (CHECKED) bits[i] += left;
    }
}

template <bool CHECKED>
void scale_columns(float* w, Size rows, Size cols, Size stride, const float* factor, Word* bits, int threads) {
    Size blocks = (rows + BLOCK - 1) / BLOCK;
    std::vector<Word> left(CHECKED ? blocks * cols : 0, 0);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (Size b = 0; b < blocks; ++b)
        for (Size i = b * BLOCK; i < std::min(rows, (b + 1) * BLOCK); ++i) {
            float* x = w + i * stride;
            Word* sums = left.data() + CHECKED * b * cols;
#pragma omp simd
            for (Size j = 0; j < cols; ++j) {
                x[j] *= factor[j];
                if (CHECKED) sums[j] += *reinterpret_cast<const Word*>(x + j);
            }
        }
    if (CHECKED)
        for (Size b = 0; b < blocks; ++b)
            for (Size j = 0; j < cols; ++j) bits[j] += left[b * cols + j];
}

}  // namespace

extern "C" {

// squares and bits: a sum for each vector, added to; bits may be null
__attribute__((visibility("default"))) void ngpt_adamw(
    float* w, const float* g, float* m, float* v, Size rows, Size cols, Size stride, int norm, float* squares,
    Word* bits, const Rule* rule, int threads) {
    if (norm == COLUMNS) {
        auto update = bits ? update_columns<true> : update_columns<false>;
        update(w, g, m, v, rows, cols, stride, squares, bits, *rule, threads);
    } else {
        auto update = bits ? update_rows<true> : update_rows<false>;
        update(w, g, m, v, rows, cols, stride, norm == ROWS ? squares : nullptr, bits, *rule, threads);
    }
}

__attribute__((visibility("default"))) void ngpt_scale(
    float* w, Size rows, Size cols, Size stride, int norm, const float* factor, Word* bits, int threads) {
    if (norm == ROWS)
        (bits ? scale_rows<true> : scale_rows<false>)(w, rows, cols, stride, factor, bits, threads);
    else
        (bits ? scale_columns<true> : scale_columns<false>)(w, rows, cols, stride, factor, bits, threads);
}
}

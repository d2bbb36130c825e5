// AdamW with the sums of squares that the projection needs, in one pass over memory; and the scaling.
//
// A piece is a matrix [rows, cols] inside a longer tensor, its rows `stride` apart; master, gradient and both averages
// are laid out alike. Sums are taken in blocks of rows whose size depends on the shape alone, so that results do not
// depend on the number of threads. Plain C to its caller (fused_adamw.py, through ctypes).

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

typedef int64_t Size;

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

double row(Size n, float* w, const float* g, float* m, float* v, const Rule& r) {
    double total = 0;
    for (Size begin = 0; begin < n; begin += LANE) {
        Size end = std::min(n, begin + LANE);
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (Size i = begin; i < end; ++i) {
            float x = update(w + i, g[i], m + i, v + i, r);
            sum += x * x;
        }
        total += sum;
    }
    return total;
}

void row_of_columns(Size n, float* w, const float* g, float* m, float* v, const Rule& r, float* sums) {
#pragma omp simd
    for (Size i = 0; i < n; ++i) {
        float x = update(w + i, g[i], m + i, v + i, r);
        sums[i] += x * x;
    }
}

}  // namespace

extern "C" {

__attribute__((visibility("default"))) void ngpt_adamw(
    float* w, const float* g, float* m, float* v, Size rows, Size cols, Size stride, int norm, float* squares,
    const Rule* rule, int threads) {
    const Rule r = *rule;
    if (norm == COLUMNS) {
        Size blocks = (rows + BLOCK - 1) / BLOCK;
        std::vector<float> sums(blocks * cols, 0.0f);
#pragma omp parallel for num_threads(threads) schedule(static)
        for (Size b = 0; b < blocks; ++b)
            for (Size i = b * BLOCK; i < std::min(rows, (b + 1) * BLOCK); ++i) {
                Size at = i * stride;
                row_of_columns(cols, w + at, g + at, m + at, v + at, r, sums.data() + b * cols);
            }
#pragma omp parallel for num_threads(threads) schedule(static)
        for (Size i = 0; i < cols; ++i) {
            double total = 0;
            for (Size b = 0; b < blocks; ++b) total += sums[b * cols + i];
            squares[i] += float(total);
        }
        return;
    }
#pragma omp parallel for num_threads(threads) schedule(static)
    for (Size i = 0; i < rows; ++i) {
        Size at = i * stride;
        double total = row(cols, w + at, g + at, m + at, v + at, r);
        if (norm == ROWS) squares[i] += float(total);
    }
}

__attribute__((visibility("default"))) void ngpt_scale(
    float* w, Size rows, Size cols, Size stride, int norm, const float* factor, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (Size i = 0; i < rows; ++i) {
        float* x = w + i * stride;
        if (norm == ROWS) {
            float f = factor[i];
#pragma omp simd
            for (Size j = 0; j < cols; ++j) x[j] *= f;
        } else {
#pragma omp simd
            for (Size j = 0; j < cols; ++j) x[j] *= factor[j];
        }
    }
}
}

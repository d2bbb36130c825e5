// The operations of nGPT and GPT on a CPU: one pass over memory each, forward and backward.
//
// Shapes are as in interface.py. Activations are fp32 or bf16, vectors of scales and all arithmetic fp32. Sums over
// tokens are taken in blocks of rows whose size depends on the shape alone, so that results do not depend on the
// number of threads. Every function is plain C to its caller (cpp.py, through ctypes).

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>

#include "numbers.h"

namespace {

inline float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

// Sum of f(i) in 32 lanes: fast, and closer than one running sum.
template <class F>
inline float sum(Size n, F f) {
    float lanes[32] = {0};
    Size i = 0;
    for (; i + 32 <= n; i += 32)
        for (int lane = 0; lane < 32; ++lane) lanes[lane] += f(i + lane);
    for (int lane = 0; i < n; ++i, ++lane) lanes[lane] += f(i);
    for (int half = 16; half; half /= 2)
        for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
    return lanes[0];
}

const float SHORTEST = 1e-12f;  // lengths to divide by are not below

inline float length(float squares) { return std::max(std::sqrt(squares), SHORTEST); }

// Rows of a block: a few, but at most 256 blocks however many tokens there are.
inline Size block_rows(Size rows, Size least) { return std::max(least, (rows + 255) / 256); }

// f(first row, one past the last, block) for all blocks of rows.
template <class F>
void blocks_of_rows(Size rows, Size least, int threads, F f) {
    Size size = block_rows(rows, least), count = (rows + size - 1) / size;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (Size block = 0; block < count; ++block) f(block * size, std::min(rows, (block + 1) * size), block);
}

// Sums over tokens, one row of partial sums for each block, added up in the order of blocks.
struct Partial {
    Size rows, width, size, count;
    std::unique_ptr<float[]> values;

    Partial(Size rows, Size width, Size least, bool wanted) : rows(rows), width(width) {
        size = block_rows(rows, least);
        count = (rows + size - 1) / size;
        if (wanted) values.reset(new float[count * width]);
    }

    float* begin(Size block) {
        float* mine = values.get() + block * width;
        std::fill(mine, mine + width, 0.0f);
        return mine;
    }

    void total(float* to, int threads) {
        const Size tile = 256;
#pragma omp parallel for num_threads(threads) schedule(static)
        for (Size first = 0; first < width; first += tile) {
            Size last = std::min(width, first + tile);
            std::fill(to + first, to + last, 0.0f);
            for (Size block = 0; block < count; ++block) {
                const float* from = values.get() + block * width;
                for (Size i = first; i < last; ++i) to[i] += from[i];
            }
        }
    }
};

const Size ROWS = 16;

template <class T>
void unit_forward(const T* x, T* out, Size rows, Size width, float eps, int threads) {
    blocks_of_rows(rows, ROWS, threads, [=](Size first, Size last, Size) {
        for (Size row = first; row < last; ++row) {
            const T* from = x + row * width;
            T* to = out + row * width;
            float by = 1.0f / (length(sum(width, [=](Size i) { float a = load(from[i]); return a * a; })) + eps);
#pragma omp simd
            for (Size i = 0; i < width; ++i) store(to + i, load(from[i]) * by);
        }
    });
}

// Of u = x / (length + eps), given the sum of g u: g - u * along, over length + eps.
inline float along(float dot, float length, float eps) { return eps != 0 ? dot / length * (length + eps) : dot; }

template <class T>
void unit_backward(const T* grad, const T* x, T* out, Size rows, Size width, float eps, int threads) {
    blocks_of_rows(rows, ROWS, threads, [=](Size first, Size last, Size) {
        for (Size row = first; row < last; ++row) {
            const T *from = x + row * width, *g = grad + row * width;
            T* to = out + row * width;
            float long_ = length(sum(width, [=](Size i) { float a = load(from[i]); return a * a; }));
            float by = 1.0f / (long_ + eps);
            float dot = sum(width, [=](Size i) { return load(g[i]) * load(from[i]); }) * by;
            float back = along(dot, long_, eps) * by;
#pragma omp simd
            for (Size i = 0; i < width; ++i) store(to + i, (load(g[i]) - load(from[i]) * back) * by);
        }
    });
}

// unit(a + |alpha| (b - a)) with a = unit(h), b = branch / (its length + eps)
template <class T>
void residual_step(const T* h, const T* branch, const float* alpha, T* out, Size rows, Size width, float eps,
                   int threads) {
    blocks_of_rows(rows, ROWS, threads, [=](Size first, Size last, Size) {
        for (Size row = first; row < last; ++row) {
            const T *x = h + row * width, *y = branch + row * width;
            T* to = out + row * width;
            float by_x = 1.0f / length(sum(width, [=](Size i) { float a = load(x[i]); return a * a; }));
            float by_y = 1.0f / (length(sum(width, [=](Size i) { float b = load(y[i]); return b * b; })) + eps);
            auto stepped = [=](Size i) {
                float a = load(x[i]) * by_x, b = load(y[i]) * by_y;
                return a + std::fabs(alpha[i]) * (b - a);
            };
            float by = 1.0f / length(sum(width, [=](Size i) { float s = stepped(i); return s * s; }));
#pragma omp simd
            for (Size i = 0; i < width; ++i) store(to + i, stepped(i) * by);
        }
    });
}

template <class T>
void residual_step_backward(const T* grad, const T* h, const T* branch, const float* alpha, T* grad_h, T* grad_branch,
                            float* grad_alpha, Size rows, Size width, float eps, int threads) {
    Partial partial(rows, width, ROWS, true);
    blocks_of_rows(rows, ROWS, threads, [=, &partial](Size first, Size last, Size block) {
        float* sums = partial.begin(block);
        for (Size row = first; row < last; ++row) {
            const T *x = h + row * width, *y = branch + row * width, *g = grad + row * width;
            T *to_x = grad_h + row * width, *to_y = grad_branch + row * width;
            float long_x = length(sum(width, [=](Size i) { float a = load(x[i]); return a * a; }));
            float long_y = length(sum(width, [=](Size i) { float b = load(y[i]); return b * b; }));
            float by_x = 1.0f / long_x, by_y = 1.0f / (long_y + eps);
            auto stepped = [=](Size i) {
                float a = load(x[i]) * by_x, b = load(y[i]) * by_y;
                return a + std::fabs(alpha[i]) * (b - a);
            };
            float by = 1.0f / length(sum(width, [=](Size i) { float s = stepped(i); return s * s; }));
            float back = sum(width, [=](Size i) { return stepped(i) * load(g[i]); }) * by * by;
            auto grad_s = [=](Size i) { return (load(g[i]) - stepped(i) * back) * by; };
            float dot_a = sum(width, [=](Size i) {
                return load(x[i]) * by_x * (1.0f - std::fabs(alpha[i])) * grad_s(i);
            });
            float dot_b = sum(width, [=](Size i) { return load(y[i]) * by_y * std::fabs(alpha[i]) * grad_s(i); });
            dot_b = along(dot_b, long_y, eps);
#pragma omp simd
            for (Size i = 0; i < width; ++i) {
                float a = load(x[i]) * by_x, b = load(y[i]) * by_y, step = std::fabs(alpha[i]), gs = grad_s(i);
                float gb = step * gs;
                sums[i] += (b - a) * gs;
                store(to_y + i, (gb - b * dot_b) * by_y);
                store(to_x + i, (gs - gb - a * dot_a) * by_x);
            }
        }
    });
    partial.total(grad_alpha, threads);
    for (Size i = 0; i < width; ++i) grad_alpha[i] *= alpha[i] > 0 ? 1.0f : (alpha[i] < 0 ? -1.0f : 0.0f);
}

template <class T>
void rms_norm(const T* x, const float* gain, T* out, Size rows, Size width, float eps, int threads) {
    blocks_of_rows(rows, ROWS, threads, [=](Size first, Size last, Size) {
        for (Size row = first; row < last; ++row) {
            const T* from = x + row * width;
            T* to = out + row * width;
            float squares = sum(width, [=](Size i) { float a = load(from[i]); return a * a; });
            float by = 1.0f / std::sqrt(squares / float(width) + eps);
#pragma omp simd
            for (Size i = 0; i < width; ++i) store(to + i, load(from[i]) * by * gain[i]);
        }
    });
}

// beside: the gradient that reaches x by another way, added; may be null
template <class T>
void rms_norm_backward(const T* grad, const T* beside, const T* x, const float* gain, T* grad_x, float* grad_gain,
                       Size rows, Size width, float eps, int threads) {
    Partial partial(rows, width, ROWS, true);
    blocks_of_rows(rows, ROWS, threads, [=, &partial](Size first, Size last, Size block) {
        float* sums = partial.begin(block);
        for (Size row = first; row < last; ++row) {
            const T *from = x + row * width, *g = grad + row * width, *other = beside + row * width;
            T* to = grad_x + row * width;
            float squares = sum(width, [=](Size i) { float a = load(from[i]); return a * a; });
            float by = 1.0f / std::sqrt(squares / float(width) + eps);
            float dot = sum(width, [=](Size i) { return load(g[i]) * gain[i] * load(from[i]); });
            float back = dot * by / float(width);
            if (beside) {
#pragma omp simd
                for (Size i = 0; i < width; ++i) {
                    float n = load(from[i]) * by, gi = load(g[i]);
                    sums[i] += gi * n;
                    store(to + i, load(other[i]) + (gi * gain[i] - n * back) * by);
                }
            } else {
#pragma omp simd
                for (Size i = 0; i < width; ++i) {
                    float n = load(from[i]) * by, gi = load(g[i]);
                    sums[i] += gi * n;
                    store(to + i, (gi * gain[i] - n * back) * by);
                }
            }
        }
    });
    partial.total(grad_gain, threads);
}

// Where the vectors of a [B, T, heads, width] tensor lie; those of a head are contiguous.
struct Place {
    Size batch, token, head;
};

struct Rotary {
    Size B, T, heads, width, turning;  // turning: dimensions that rotate
    Place x, grad;
    Size table_batch;  // distance of two sequences' tables, 0 for one table
    bool normed, half;
};

// The vector of one head, rotated (sign 1) or turned back (sign -1).
inline void turn(const float* x, const float* table, float* out, const Rotary& at, float sign) {
    Size pairs = at.turning / 2;
    if (at.half) {
#pragma omp simd
        for (Size i = 0; i < pairs; ++i) {
            float one = x[i], two = x[i + pairs], cos = table[2 * i], sin = sign * table[2 * i + 1];
            out[i] = one * cos - two * sin;
            out[i + pairs] = one * sin + two * cos;
        }
    } else {
#pragma omp simd
        for (Size i = 0; i < pairs; ++i) {
            float one = x[2 * i], two = x[2 * i + 1], cos = table[2 * i], sin = sign * table[2 * i + 1];
            out[2 * i] = one * cos - two * sin;
            out[2 * i + 1] = one * sin + two * cos;
        }
    }
    for (Size i = at.turning; i < at.width; ++i) out[i] = x[i];
}

template <class T>
void rotary(const T* x, const float* table, const float* scale, T* out, const Rotary& at, int threads) {
    blocks_of_rows(at.B * at.T, ROWS, threads, [=, &at](Size first, Size last, Size) {
        std::unique_ptr<float[]> space(new float[2 * at.width]);
        float *mine = space.get(), *turned = mine + at.width;
        for (Size row = first; row < last; ++row) {
            Size b = row / at.T, t = row % at.T;
            const float* angles = table + b * at.table_batch + t * at.turning;
            for (Size head = 0; head < at.heads; ++head) {
                const T* from = x + b * at.x.batch + t * at.x.token + head * at.x.head;
                T* to = out + (row * at.heads + head) * at.width;
                for (Size i = 0; i < at.width; ++i) mine[i] = load(from[i]);
                turn(mine, angles, turned, at, 1.0f);
                float by = 1.0f;
                if (at.normed) by = 1.0f / length(sum(at.width, [=](Size i) { return turned[i] * turned[i]; }));
                if (scale) {
                    const float* s = scale + head * at.width;
#pragma omp simd
                    for (Size i = 0; i < at.width; ++i) store(to + i, turned[i] * by * s[i]);
                } else {
#pragma omp simd
                    for (Size i = 0; i < at.width; ++i) store(to + i, turned[i] * by);
                }
            }
        }
    });
}

template <class T>
void rotary_backward(const T* grad, const T* x, const float* table, const float* scale, T* grad_x, float* grad_scale,
                     const Rotary& at, int threads) {
    Size rows = at.B * at.T;
    Partial partial(rows, at.heads * at.width, ROWS, scale != nullptr);
    blocks_of_rows(rows, ROWS, threads, [=, &at, &partial](Size first, Size last, Size block) {
        float* sums = scale ? partial.begin(block) : nullptr;
        std::unique_ptr<float[]> space(new float[3 * at.width]);
        float *mine = space.get(), *turned = mine + at.width, *g = turned + at.width;
        for (Size row = first; row < last; ++row) {
            Size b = row / at.T, t = row % at.T;
            const float* angles = table + b * at.table_batch + t * at.turning;
            for (Size head = 0; head < at.heads; ++head) {
                const T* given = grad + b * at.grad.batch + t * at.grad.token + head * at.grad.head;
                T* to = grad_x + (row * at.heads + head) * at.width;
                for (Size i = 0; i < at.width; ++i) g[i] = load(given[i]);
                if (at.normed) {
                    const T* from = x + b * at.x.batch + t * at.x.token + head * at.x.head;
                    for (Size i = 0; i < at.width; ++i) mine[i] = load(from[i]);
                    turn(mine, angles, turned, at, 1.0f);
                    float by = 1.0f / length(sum(at.width, [=](Size i) { return turned[i] * turned[i]; }));
                    if (scale) {
                        const float* s = scale + head * at.width;
                        float* mine_s = sums + head * at.width;
#pragma omp simd
                        for (Size i = 0; i < at.width; ++i) {
                            mine_s[i] += g[i] * turned[i] * by;
                            g[i] *= s[i];
                        }
                    }
                    float back = sum(at.width, [=](Size i) { return g[i] * turned[i]; }) * by * by;
#pragma omp simd
                    for (Size i = 0; i < at.width; ++i) g[i] = (g[i] - turned[i] * back) * by;
                }
                turn(g, angles, mine, at, -1.0f);
#pragma omp simd
                for (Size i = 0; i < at.width; ++i) store(to + i, mine[i]);
            }
        }
    });
    if (scale) partial.total(grad_scale, threads);
}

// (s_u u) silu(s_v v); scales null together
template <class T>
void swiglu(const T* u, const T* v, const float* s_u, const float* s_v, T* out, Size rows, Size width, int threads) {
    blocks_of_rows(rows, ROWS, threads, [=](Size first, Size last, Size) {
        for (Size row = first; row < last; ++row) {
            const T *x = u + row * width, *y = v + row * width;
            T* to = out + row * width;
            if (s_u) {
#pragma omp simd
                for (Size i = 0; i < width; ++i) {
                    float gate = load(y[i]) * s_v[i];
                    store(to + i, load(x[i]) * s_u[i] * gate * sigmoid(gate));
                }
            } else {
#pragma omp simd
                for (Size i = 0; i < width; ++i) {
                    float gate = load(y[i]);
                    store(to + i, load(x[i]) * gate * sigmoid(gate));
                }
            }
        }
    });
}

template <class T>
void swiglu_backward(const T* grad, const T* u, const T* v, const float* s_u, const float* s_v, T* grad_u, T* grad_v,
                     float* grad_s_u, float* grad_s_v, Size rows, Size width, int threads) {
    Partial partial(rows, 2 * width, ROWS, s_u != nullptr);
    blocks_of_rows(rows, ROWS, threads, [=, &partial](Size first, Size last, Size block) {
        float *sums_u = s_u ? partial.begin(block) : nullptr, *sums_v = sums_u + width;
        for (Size row = first; row < last; ++row) {
            const T *x = u + row * width, *y = v + row * width, *g = grad + row * width;
            T *to_u = grad_u + row * width, *to_v = grad_v + row * width;
            if (s_u) {
#pragma omp simd
                for (Size i = 0; i < width; ++i) {
                    float ui = load(x[i]), vi = load(y[i]), gi = load(g[i]);
                    float gate = vi * s_v[i], part = sigmoid(gate), silu = gate * part;
                    float gu = gi * silu, gv = gi * (part + silu * (1.0f - part)) * ui * s_u[i];
                    sums_u[i] += gu * ui;
                    sums_v[i] += gv * vi;
                    store(to_u + i, gu * s_u[i]);
                    store(to_v + i, gv * s_v[i]);
                }
            } else {
#pragma omp simd
                for (Size i = 0; i < width; ++i) {
                    float gate = load(y[i]), gi = load(g[i]), part = sigmoid(gate), silu = gate * part;
                    store(to_v + i, gi * (part + silu * (1.0f - part)) * load(x[i]));
                    store(to_u + i, gi * silu);
                }
            }
        }
    });
    if (s_u) {
        std::unique_ptr<float[]> both(new float[2 * width]);
        partial.total(both.get(), threads);
        std::copy(both.get(), both.get() + width, grad_s_u);
        std::copy(both.get() + width, both.get() + 2 * width, grad_s_v);
    }
}

// relu(s_u u)^2
template <class T>
void squared_relu(const T* u, const float* s_u, T* out, Size rows, Size width, int threads) {
    blocks_of_rows(rows, ROWS, threads, [=](Size first, Size last, Size) {
        for (Size row = first; row < last; ++row) {
            const T* x = u + row * width;
            T* to = out + row * width;
#pragma omp simd
            for (Size i = 0; i < width; ++i) {
                float a = load(x[i]) * (s_u ? s_u[i] : 1.0f);
                a = a < 0 ? 0.0f : a;  // NaN stays
                store(to + i, a * a);
            }
        }
    });
}

template <class T>
void squared_relu_backward(const T* grad, const T* u, const float* s_u, T* grad_u, float* grad_s_u, Size rows,
                           Size width, int threads) {
    Partial partial(rows, width, ROWS, s_u != nullptr);
    blocks_of_rows(rows, ROWS, threads, [=, &partial](Size first, Size last, Size block) {
        float* sums = s_u ? partial.begin(block) : nullptr;
        for (Size row = first; row < last; ++row) {
            const T *x = u + row * width, *g = grad + row * width;
            T* to = grad_u + row * width;
            if (s_u) {
#pragma omp simd
                for (Size i = 0; i < width; ++i) {
                    float a = load(x[i]) * s_u[i];
                    a = 2.0f * (a < 0 ? 0.0f : a) * load(g[i]);
                    sums[i] += a * load(x[i]);
                    store(to + i, a * s_u[i]);
                }
            } else {
#pragma omp simd
                for (Size i = 0; i < width; ++i) {
                    float a = load(x[i]);
                    store(to + i, 2.0f * (a < 0 ? 0.0f : a) * load(g[i]));
                }
            }
        }
    });
    if (s_u) partial.total(grad_s_u, threads);
}

// In place of every row exp(u - largest) of its first `real` columns, 0 for the rest; the largest and the sum.
void exponentials(float* u, float* largest, float* total, Size rows, Size real, Size width, int threads) {
    blocks_of_rows(rows, 1, threads, [=](Size first, Size last, Size) {
        for (Size row = first; row < last; ++row) {
            float *x = u + row * width, most = -INFINITY;
#pragma omp simd reduction(max : most)
            for (Size i = 0; i < real; ++i) most = x[i] > most ? x[i] : most;
            largest[row] = most;
            total[row] = sum(real, [=](Size i) { return x[i] = exponential(x[i] - most); });
            std::fill(x + real, x + width, 0.0f);
        }
    });
}

// Of every row the sum of x y; then x times the row's scale.
void scale_rows(float* x, const float* y, const float* scale, float* sums, Size rows, Size width, int threads) {
    blocks_of_rows(rows, ROWS, threads, [=](Size first, Size last, Size) {
        for (Size row = first; row < last; ++row) {
            float *own = x + row * width, by = scale[row];
            const float* other = y + row * width;
            sums[row] = sum(width, [=](Size i) { return own[i] * other[i]; });
            for (Size i = 0; i < width; ++i) own[i] *= by;
        }
    });
}

// Of every row of z = scale u, its first `real` columns: the largest and the sum of exp(z - largest).
void softmax_sums(const float* u, const float* scale, float* largest, float* total, Size rows, Size real, Size width,
                  int threads) {
    blocks_of_rows(rows, 1, threads, [=](Size first, Size last, Size) {
        for (Size row = first; row < last; ++row) {
            const float* x = u + row * width;
            float most = -INFINITY, bad = 0.0f;
            if (scale) {
#pragma omp simd reduction(max : most) reduction(+ : bad)
                for (Size i = 0; i < real; ++i) {
                    float z = x[i] * scale[i];
                    most = z > most ? z : most;
                    bad += z != z ? 1.0f : 0.0f;
                }
            } else {
#pragma omp simd reduction(max : most) reduction(+ : bad)
                for (Size i = 0; i < real; ++i) {
                    most = x[i] > most ? x[i] : most;
                    bad += x[i] != x[i] ? 1.0f : 0.0f;
                }
            }
            if (bad > 0) most = NAN;
            largest[row] = most;
            total[row] = scale ? sum(real, [=](Size i) { return exponential(x[i] * scale[i] - most); })
                               : sum(real, [=](Size i) { return exponential(x[i] - most); });
        }
    });
}

// In place of u the gradient of sum_r weight_r (log(total_r) + largest_r - z_r,target), times slope / scale; and that
// of the scale. target -1: among other columns.
void softmax_gradient(float* u, const float* scale, const float* slope, const float* largest, const float* total,
                      const float* weight, const int64_t* target, float* grad_scale, Size rows, Size real, Size width,
                      int threads) {
    Partial partial(rows, width, ROWS, scale != nullptr);
    const Size tile = 1024;  // columns: scale, slope and sums of a tile stay in the first cache
    blocks_of_rows(rows, ROWS, threads, [=, &partial](Size first, Size last, Size block) {
        float* sums = scale ? partial.begin(block) : nullptr;
        for (Size begin = 0; begin < width; begin += tile) {
            Size end = std::min(width, begin + tile), seen = std::min(real, end);
            for (Size row = first; row < last; ++row) {
                float* x = u + row * width;
                float most = largest[row], by = weight[row] / total[row], own = weight[row];
                Size t = own != 0 ? target[row] : -1;
                bool here = t >= begin && t < seen;
                float before = here ? x[t] : 0.0f;
                if (own == 0) {
                    std::fill(x + begin, x + end, 0.0f);
                    continue;
                }
                if (scale) {
#pragma omp simd
                    for (Size i = begin; i < seen; ++i) {
                        float cosine = x[i], g = exponential(cosine * scale[i] - most) * by;
                        sums[i] += g * cosine;
                        x[i] = g * slope[i];
                    }
                    if (here) {
                        sums[t] -= own * before;
                        x[t] -= own * slope[t];
                    }
                } else {
#pragma omp simd
                    for (Size i = begin; i < seen; ++i) x[i] = exponential(x[i] - most) * by;
                    if (here) x[t] -= own;
                }
                for (Size i = std::max(seen, begin); i < end; ++i) x[i] = 0.0f;
            }
        }
    });
    if (scale) partial.total(grad_scale, threads);
}

}  // namespace

#define API extern "C" __attribute__((visibility("default"))) void
#define BOTH(call)                  \
    if (low) {                      \
        typedef bf16 T;             \
        call;                       \
    } else {                        \
        typedef float T;            \
        call;                       \
    }
#define IN(x) static_cast<const T*>(x)
#define OUT(x) static_cast<T*>(x)

// low: activations are bf16, else fp32

API ngpt_unit(int low, const void* x, void* out, Size rows, Size width, float eps, int threads) {
    BOTH(unit_forward(IN(x), OUT(out), rows, width, eps, threads))
}

API ngpt_unit_backward(int low, const void* grad, const void* x, void* out, Size rows, Size width, float eps,
                       int threads) {
    BOTH(unit_backward(IN(grad), IN(x), OUT(out), rows, width, eps, threads))
}

API ngpt_residual_step(int low, const void* h, const void* branch, const float* alpha, void* out, Size rows, Size width,
                       float eps, int threads) {
    BOTH(residual_step(IN(h), IN(branch), alpha, OUT(out), rows, width, eps, threads))
}

API ngpt_residual_step_backward(int low, const void* grad, const void* h, const void* branch, const float* alpha,
                                void* grad_h, void* grad_branch, float* grad_alpha, Size rows, Size width, float eps,
                                int threads) {
    BOTH(residual_step_backward(IN(grad), IN(h), IN(branch), alpha, OUT(grad_h), OUT(grad_branch), grad_alpha, rows,
                                width, eps, threads))
}

API ngpt_rms_norm(int low, const void* x, const float* gain, void* out, Size rows, Size width, float eps, int threads) {
    BOTH(rms_norm(IN(x), gain, OUT(out), rows, width, eps, threads))
}

API ngpt_rms_norm_backward(int low, const void* grad, const void* beside, const void* x, const float* gain,
                           void* grad_x, float* grad_gain, Size rows, Size width, float eps, int threads) {
    BOTH(rms_norm_backward(IN(grad), IN(beside), IN(x), gain, OUT(grad_x), grad_gain, rows, width, eps, threads))
}

API ngpt_rotary(int low, const void* x, const float* table, const float* scale, void* out, const Size* shape,
                int threads) {
    Rotary at;
    std::memcpy(&at, shape, 12 * sizeof(Size));
    at.normed = shape[12], at.half = shape[13];
    BOTH(rotary(IN(x), table, scale, OUT(out), at, threads))
}

API ngpt_rotary_backward(int low, const void* grad, const void* x, const float* table, const float* scale, void* grad_x,
                         float* grad_scale, const Size* shape, int threads) {
    Rotary at;
    std::memcpy(&at, shape, 12 * sizeof(Size));
    at.normed = shape[12], at.half = shape[13];
    BOTH(rotary_backward(IN(grad), IN(x), table, scale, OUT(grad_x), grad_scale, at, threads))
}

API ngpt_swiglu(int low, const void* u, const void* v, const float* s_u, const float* s_v, void* out, Size rows,
                Size width, int threads) {
    BOTH(swiglu(IN(u), IN(v), s_u, s_v, OUT(out), rows, width, threads))
}

API ngpt_swiglu_backward(int low, const void* grad, const void* u, const void* v, const float* s_u, const float* s_v,
                         void* grad_u, void* grad_v, float* grad_s_u, float* grad_s_v, Size rows, Size width,
                         int threads) {
    BOTH(swiglu_backward(IN(grad), IN(u), IN(v), s_u, s_v, OUT(grad_u), OUT(grad_v), grad_s_u, grad_s_v, rows, width,
                         threads))
}

API ngpt_squared_relu(int low, const void* u, const float* s_u, void* out, Size rows, Size width, int threads) {
    BOTH(squared_relu(IN(u), s_u, OUT(out), rows, width, threads))
}

API ngpt_squared_relu_backward(int low, const void* grad, const void* u, const float* s_u, void* grad_u,
                               float* grad_s_u, Size rows, Size width, int threads) {
    BOTH(squared_relu_backward(IN(grad), IN(u), s_u, OUT(grad_u), grad_s_u, rows, width, threads))
}

API ngpt_exponentials(float* u, float* largest, float* total, Size rows, Size real, Size width, int threads) {
    exponentials(u, largest, total, rows, real, width, threads);
}

API ngpt_scale_rows(float* x, const float* y, const float* scale, float* sums, Size rows, Size width, int threads) {
    scale_rows(x, y, scale, sums, rows, width, threads);
}

API ngpt_softmax_sums(const float* u, const float* scale, float* largest, float* total, Size rows, Size real,
                      Size width, int threads) {
    softmax_sums(u, scale, largest, total, rows, real, width, threads);
}

API ngpt_softmax_gradient(float* u, const float* scale, const float* slope, const float* largest, const float* total,
                          const float* weight, const int64_t* target, float* grad_scale, Size rows, Size real,
                          Size width, int threads) {
    softmax_gradient(u, scale, slope, largest, total, weight, target, grad_scale, rows, real, width, threads);
}

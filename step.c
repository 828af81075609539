/* A sampler's way from one draw to the next, for a few grids on a CPU, in one call. native.py builds and calls it.

The functions do what `_step` does in PixelCNNSampler and TransformerSampler of sampler.py; a test holds them to it.
A matrix of weights (depth, width) lies in panels of 16 columns, (ceil(width / 16), 1 + depth, 16), filled up with
zeros. The first row of each panel is the bias. */
#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined __AVX512F__
enum { LANES = 16 };  /* floats in a vector register */
#elif defined __AVX__
enum { LANES = 8 };
#else
enum { LANES = 4 };
#endif
enum { PANEL = 16, PARTS = PANEL / LANES };
typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4)));

/* The number of floats of a matrix, and the place of one of its elements. */
static long matrix(long depth, long width) { return (width + PANEL - 1) / PANEL * (1 + depth) * PANEL; }

static float *element(long depth, float *weight, long k, long column) {
    return weight + (column / PANEL * (1 + depth) + 1 + k) * PANEL + column % PANEL;
}

/* out = start + bias + x weight, for x (rows, depth) and out (rows, width). start: as out, or NULL for 0.
   Four sums are kept, of four rows or of parts of one: an addition waits for the one before it in the same sum. */
static void affine(long rows, long depth, long width, const float *x, long x_stride, const float *weight,
                   const float *start, long start_stride, float *out, long out_stride) {
    for (long first = 0; first < width; first += PANEL, weight += (1 + depth) * PANEL) {
        long columns = width - first < PANEL ? width - first : PANEL;
        const lanes *w = (const lanes *)(weight + PANEL);
        for (long row = 0, many; row < rows; row += many) {
            lanes sum[4][PARTS] = {{{0}}};
            const float *in = x + row * x_stride;
            many = rows - row < 4 ? 1 : 4;
            if (many == 4) {
                for (long k = 0; k < depth; k++)
                    for (long i = 0; i < 4; i++)
                        for (long p = 0; p < PARTS; p++) sum[i][p] += in[i * x_stride + k] * w[k * PARTS + p];
            } else {
                long k = 0;
                for (; k + 3 < depth; k += 4)
                    for (long i = 0; i < 4; i++)
                        for (long p = 0; p < PARTS; p++) sum[i][p] += in[k + i] * w[(k + i) * PARTS + p];
                for (; k < depth; k++)
                    for (long p = 0; p < PARTS; p++) sum[0][p] += in[k] * w[k * PARTS + p];
                for (long p = 0; p < PARTS; p++) sum[0][p] += sum[1][p] + (sum[2][p] + sum[3][p]);
            }
            for (long i = 0; i < many; i++)
                for (long j = 0; j < columns; j++) {
                    float from = start ? start[(row + i) * start_stride + first + j] : 0;
                    out[(row + i) * out_stride + first + j] = from + weight[j] + sum[i][j / LANES][j % LANES];
                }
        }
    }
}

/* exp as 2^n e^r with |r| <= log(2) / 2, to the last digits of a float. Compilers make vector operations of it. */
static inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    float n = rintf(x * 1.44269504f), r = x - n * 0.693359375f + n * 2.12194440e-4f, power;
    float sum = 1 + r * (1 + r * (1 / 2.0f + r * (1 / 6.0f + r * (1 / 24.0f + r * (1 / 120.0f + r * (1 / 720.0f))))));
    int32_t bits = ((int32_t)n + 127) << 23;
    memcpy(&power, &bits, sizeof power);
    return sum * power;
}

/* Sampler: the codes at one column of a row of grids, (rows, width) each: the known ones, -1 for none, and the others
   drawn as `draw` does without top_k and top_p, at this temperature, from logits (rows, codes). With a guidance that is
   not 1 as many logits without a class come after them. chances: `codes` numbers. */
void choose(long rows, long codes, long width, float guidance, float temperature, const float *uniform,
            const int64_t *known, const float *logits, float *chances, int64_t *out, long column) {
    const float *free = guidance == 1 ? logits : logits + rows * codes;
    for (long place = column; rows--; place += width, logits += codes, free += codes) {
        long code = 0;
        double sum = 0;
        for (long k = 0; k < codes; k++) chances[k] = free[k] + guidance * (logits[k] - free[k]);
        float largest = chances[0], most = 1 - 1.0f / (1 << 23);
        for (long k = 0; k < codes; k++) largest = chances[k] > largest ? chances[k] : largest;
        for (long k = 0; k < codes; k++) chances[k] = (chances[k] - largest) / temperature;
        for (long k = 0; k < codes; k++) chances[k] = chances[k] < -87 ? 0 : exponential(chances[k]);
        for (long k = 0; k < codes; k++) chances[k] = (float)(sum += chances[k]);
        float target = (uniform[place] < most ? uniform[place] : most) * chances[codes - 1];
        while (code < codes - 1 && chances[code] <= target) code++;
        out[place] = known[place] < 0 ? code : known[place];
    }
}

static inline float sigmoid(float x) { return 1 / (1 + exponential(-x)); }

static void relu(long count, float *x) {
    for (long i = 0; i < count; i++) x[i] = x[i] > 0 ? x[i] : 0;
}

/* PixelCNN: the horizontal stack and the head at one column; logits (rows, codes).
   net: for each layer its taps, its `out`, the features from the vertical stack (rows, width, 2 hidden) and its input
   (rows, width + 2 reach, hidden), of which the layer before fills the next column; then both layers of the head.
   scratch: 4 rows * hidden numbers. */
void pixelcnn(long rows, long hidden, long layers, long codes, long width, long reach, float *const *net,
              float *scratch, float *logits, long column) {
    float *gates = scratch, *gated = gates + rows * 2 * hidden, *last = gated + rows * hidden;
    long stride = (width + 2 * reach) * hidden;
    for (long layer = 0; layer < layers; layer++, net += 4) {
        int inner = layer + 1 < layers;
        const float *window = net[3] + column * hidden, *residual = layer ? window + reach * hidden : NULL;
        affine(rows, (layer ? reach + 1 : reach) * hidden, 2 * hidden, window, stride, net[0],
               net[2] + column * 2 * hidden, width * 2 * hidden, gates, 2 * hidden);
        for (long row = 0; row < rows; row++)
            for (long k = 0; k < hidden; k++) {
                const float *gate = gates + row * 2 * hidden + k;
                gated[row * hidden + k] = (sigmoid(gate[0]) - 0.5f) * sigmoid(gate[hidden]);
            }
        affine(rows, hidden, hidden, gated, hidden, net[1], residual, stride,
               inner ? net[7] + (column + reach) * hidden : last, inner ? stride : hidden);
    }
    relu(rows * hidden, last);
    affine(rows, hidden, 2 * hidden, last, hidden, net[0], NULL, 0, gates, 2 * hidden);
    relu(rows * 2 * hidden, gates);
    affine(rows, 2 * hidden, codes, gates, 2 * hidden, net[1], NULL, 0, logits, codes);
}

/* x (rows, width) with mean 0 and variance 1 in every row. */
static void normalise(long rows, long width, const float *x, float *out) {
    for (; rows--; x += width, out += width) {
        float mean = 0, variance = 0;
        for (long i = 0; i < width; i++) mean += x[i];
        mean /= width;
        for (long i = 0; i < width; i++) variance += (x[i] - mean) * (x[i] - mean);
        float scale = 1 / sqrtf(variance / width + 1e-5f);
        for (long i = 0; i < width; i++) out[i] = (x[i] - mean) * scale;
    }
}

/* A vector brought to the length `to`. */
static void stretch(long size, float *x, float to) {
    float squares = 0;
    for (long k = 0; k < size; k++) squares += x[k] * x[k];
    float length = sqrtf(squares), scale = to / (length > 1e-12f ? length : 1e-12f);
    for (long k = 0; k < size; k++) x[k] *= scale;
}

/* The softmax of each row of x (rows, width), in place. */
static void softmax(long rows, long width, float *x, long stride) {
    for (; rows--; x += stride) {
        float largest = x[0], sum = 0;
        for (long i = 0; i < width; i++) largest = x[i] > largest ? x[i] : largest;
        for (long i = 0; i < width; i++) x[i] = exponential(x[i] - largest);
        for (long i = 0; i < width; i++) sum += x[i];
        for (long i = 0; i < width; i++) x[i] /= sum;
    }
}

/* Transformer: blocks and head at one place; logits (rows, codes). x (rows, hidden) becomes the blocks' output.
   net: for each block query_key_value, out, widen, narrow, the lengths of the heads' queries, and for each row the
   keys, a matrix (size, places), and the values, a matrix (places, size), with size = hidden / heads; then the head.
   scratch: rows * (6 hidden + 2 size) + heads * places numbers. */
void transformer(long rows, long hidden, long blocks, long codes, long heads, long places, float *const *net,
                 float *scratch, float *logits, float *x, long place) {
    long size = hidden / heads, parts = hidden + 2 * size;
    float *normed = scratch, *features = normed + rows * hidden, *wide = features + rows * parts;
    float *found = normed, *chances = wide + rows * 4 * hidden;
    for (; blocks--; net += 7) {
        normalise(rows, hidden, x, normed);
        affine(rows, hidden, parts, normed, hidden, net[0], NULL, 0, features, parts);
        for (long row = 0; row < rows; row++) {
            float *query = features + row * parts, *key = query + hidden, *value = key + size;
            float *keys = net[5] + row * matrix(size, places), *values = net[6] + row * matrix(places, size);
            stretch(size, key, 1);
            for (long k = 0; k < size; k++) *element(size, keys, k, place) = key[k];
            for (long k = 0; k < size; k++) *element(places, values, place, k) = value[k];
            for (long head = 0; head < heads; head++) stretch(size, query + head * size, net[4][head]);
            affine(heads, size, place + 1, query, size, keys, NULL, 0, chances, places);
            softmax(heads, place + 1, chances, places);
            /* panel by panel, as only the rows up to `place` are filled */
            for (long k = 0; k < size; k += PANEL, values += (1 + places) * PANEL)
                affine(heads, place + 1, size - k < PANEL ? size - k : PANEL, chances, places, values, NULL, 0,
                       found + row * hidden + k, size);
        }
        affine(rows, hidden, hidden, found, hidden, net[1], x, hidden, x, hidden);
        normalise(rows, hidden, x, normed);
        affine(rows, hidden, 4 * hidden, normed, hidden, net[2], NULL, 0, wide, 4 * hidden);
        relu(rows * 4 * hidden, wide);
        affine(rows, 4 * hidden, hidden, wide, 4 * hidden, net[3], x, hidden, x, hidden);
    }
    normalise(rows, hidden, x, normed);
    affine(rows, hidden, codes, normed, hidden, net[0], NULL, 0, logits, codes);
}

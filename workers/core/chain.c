/* The chain of block ids (workers/core/hashing.py) in one call: BLAKE2b-128 as RFC 7693 has it,
   unkeyed, of messages of one length. hashlib's takes three times as long for each short message,
   most of it outside the hash. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#define LITTLE(bits, word) __builtin_bswap##bits(word)
#else
#define LITTLE(bits, word) (word)
#endif

enum { ID_BYTES = 16, INPUT = 128 };

static const uint64_t IV[8] = {
    0x6a09e667f3bcc908u, 0xbb67ae8584caa73bu, 0x3c6ef372fe94f82bu, 0xa54ff53a5f1d36f1u,
    0x510e527fade682d1u, 0x9b05688c2b3e6c1fu, 0x1f83d9abfb41bd6bu, 0x5be0cd19137e2179u,
};

static inline uint64_t rotr(uint64_t x, int n) { return (x >> n) | (x << (64 - n)); }

#define G(a, b, c, d, x, y)                                                                        \
    v[a] += v[b] + m[x]; v[d] = rotr(v[d] ^ v[a], 32); v[c] += v[d]; v[b] = rotr(v[b] ^ v[c], 24); \
    v[a] += v[b] + m[y]; v[d] = rotr(v[d] ^ v[a], 16); v[c] += v[d]; v[b] = rotr(v[b] ^ v[c], 63);

#define ROUND(a, b, c, d, e, f, g, h, i, j, k, l, n, o, p, q)                                      \
    G(0, 4, 8, 12, a, b) G(1, 5, 9, 13, c, d) G(2, 6, 10, 14, e, f) G(3, 7, 11, 15, g, h)          \
    G(0, 5, 10, 15, i, j) G(1, 6, 11, 12, k, l) G(2, 7, 8, 13, n, o) G(3, 4, 9, 14, p, q)

/* `counted`: bytes of the message up to the end of this input. */
static void compress(uint64_t h[8], const uint8_t *input, uint64_t counted, int last) {
    uint64_t m[16], v[16];
    memcpy(m, input, sizeof m);
    for (int i = 0; i < 16; i++) m[i] = LITTLE(64, m[i]);
    for (int i = 0; i < 8; i++) { v[i] = h[i]; v[i + 8] = IV[i]; }
    v[12] ^= counted;
    if (last) v[14] = ~v[14];
    ROUND(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
    ROUND(14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3)
    ROUND(11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4)
    ROUND(7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8)
    ROUND(9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13)
    ROUND(2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9)
    ROUND(12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11)
    ROUND(13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10)
    ROUND(6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5)
    ROUND(10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0)
    ROUND(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
    ROUND(14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3)
    for (int i = 0; i < 8; i++) h[i] ^= v[i] ^ v[i + 8];
}

/* `message` is zero behind its `length` bytes, up to a whole number of inputs. */
static void digest(const uint8_t *message, size_t length, uint8_t out[ID_BYTES]) {
    uint64_t h[8];
    memcpy(h, IV, sizeof h);
    h[0] ^= 0x01010000u ^ ID_BYTES;
    size_t at = 0;
    for (; length - at > INPUT; at += INPUT) compress(h, message + at, at + INPUT, 0);
    compress(h, message + at, length, 1);
    for (int i = 0; i < ID_BYTES; i++) out[i] = (uint8_t)(h[i / 8] >> (8 * (i % 8)));
}

static int pack(PyObject *token, uint8_t *out) {
    long value = PyLong_AsLong(token);
    if (value == -1 && PyErr_Occurred()) return -1;
    if (value < INT32_MIN || value > INT32_MAX) {
        PyErr_SetString(PyExc_OverflowError, "a token id beyond 32 bits");
        return -1;
    }
    uint32_t word = LITTLE(32, (uint32_t)value);
    memcpy(out, &word, sizeof word);
    return 0;
}

static PyObject *chain(PyObject *Py_UNUSED(self), PyObject *args) {
    Py_buffer last;
    PyObject *tokens, *found = NULL, *fast = NULL;
    Py_ssize_t first, end, size;
    uint8_t *message = NULL;
    if (!PyArg_ParseTuple(args, "y*Onnn", &last, &tokens, &first, &end, &size)) return NULL;
    fast = PySequence_Fast(tokens, "tokens are no sequence");
    if (fast == NULL) goto over;
    if (last.len != ID_BYTES || size <= 0 || first < 0 || end > PySequence_Fast_GET_SIZE(fast) ||
        size > PY_SSIZE_T_MAX / 8) {
        PyErr_SetString(PyExc_ValueError, "no such blocks");
        goto over;
    }
    size_t length = ID_BYTES + 4 * (size_t)size;
    message = PyMem_Calloc((length + INPUT - 1) / INPUT, INPUT);
    found = PyList_New(0);
    if (message == NULL || found == NULL) {
        PyErr_NoMemory();
        goto failed;
    }
    memcpy(message, last.buf, ID_BYTES);
    PyObject **items = PySequence_Fast_ITEMS(fast);
    for (Py_ssize_t at = first; at + size <= end; at += size) {
        for (Py_ssize_t i = 0; i < size; i++)
            if (pack(items[at + i], message + ID_BYTES + 4 * i) < 0) goto failed;
        uint8_t id[ID_BYTES];
        digest(message, length, id);
        memcpy(message, id, ID_BYTES);
        PyObject *block = PyBytes_FromStringAndSize((char *)id, ID_BYTES);
        if (block == NULL) goto failed;
        int refused = PyList_Append(found, block);
        Py_DECREF(block);
        if (refused) goto failed;
    }
    goto over;
failed:
    Py_CLEAR(found);
over:
    PyMem_Free(message);
    Py_XDECREF(fast);
    PyBuffer_Release(&last);
    return found;
}

static PyMethodDef methods[] = {
    {"chain", chain, METH_VARARGS,
     "chain(last, tokens, first, end, size): ids of the blocks of `size` tokens in first..end, the\n"
     "first of them behind the id `last`."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, .m_name = "_chain", .m_size = -1, .m_methods = methods};

PyMODINIT_FUNC PyInit__chain(void) { return PyModule_Create(&module); }

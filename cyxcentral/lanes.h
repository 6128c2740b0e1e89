#ifndef CYX_LANES_H
#define CYX_LANES_H

#include <stdint.h>

#define LANES 8

/* Whether this processor multiplies eight 52-bit numbers at once (AVX-512 IFMA). To be called first, and once: nothing
 * else here works before it, nor where it says 0. */
int lanes_begin(void);

/* Eight Ed25519 signatures at once; good[i] is 1 where signature i (R and S, 64 bytes) is that of key i (32 bytes), and
 * neither the key nor R is of small order. hashes: SHA-512 of R, key and message modulo the order of the base point, 32
 * bytes each, little endian. */
void lanes_good(const uint8_t *keys, const uint8_t *signatures, const uint8_t *hashes, uint8_t *good);

/* found[i] is 1 where these 32 bytes encode a point of the curve. */
void lanes_on_curve(const uint8_t *encoded, uint8_t *found);

#endif

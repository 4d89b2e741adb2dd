// Every format that a file holds weights in. A new one: its file, and an INSTANCE line.
#pragma once

#include "fp4.cuh"
#include "iq1.cuh"
#include "iq2.cuh"
#include "iq3.cuh"
#include "iq4.cuh"
#include "plain.cuh"
#include "q2_k.cuh"
#include "q3_k.cuh"
#include "q4_0.cuh"
#include "q4_1.cuh"
#include "q4_k.cuh"
#include "q5.cuh"
#include "q5_k.cuh"
#include "q6_k.cuh"
#include "q8_0.cuh"
#include "ternary.cuh"

#define FOR_ALL_FORMATS(INSTANCE) \
    INSTANCE(F32)                 \
    INSTANCE(F16)                 \
    INSTANCE(BF16)                \
    INSTANCE(Q4_0)                \
    INSTANCE(Q4_1)                \
    INSTANCE(Q5_0)                \
    INSTANCE(Q5_1)                \
    INSTANCE(Q8_0)                \
    INSTANCE(Q2_K)                \
    INSTANCE(Q3_K)                \
    INSTANCE(Q4_K)                \
    INSTANCE(Q5_K)                \
    INSTANCE(Q6_K)                \
    INSTANCE(IQ1_S)               \
    INSTANCE(IQ1_M)               \
    INSTANCE(IQ2_XXS)             \
    INSTANCE(IQ2_XS)              \
    INSTANCE(IQ2_S)               \
    INSTANCE(IQ3_XXS)             \
    INSTANCE(IQ3_S)               \
    INSTANCE(IQ4_NL)              \
    INSTANCE(IQ4_XS)              \
    INSTANCE(TQ1_0)               \
    INSTANCE(TQ2_0)               \
    INSTANCE(Q1_0)                \
    INSTANCE(Q2_0)                \
    INSTANCE(MXFP4)               \
    INSTANCE(NVFP4)

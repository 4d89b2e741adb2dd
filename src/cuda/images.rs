//! What `tools/dev/kernels` compiled, as it lies in the program: 50 files, 2 MB, each compressed by itself.

/// The compiled sources of `kernels/` for one kind of GPU: name and compressed code.
type Sources = &'static [(&'static str, &'static [u8])];

/// Machine code for one kind of GPU.
pub(super) struct Image {
    /// It runs on this compute capability, and on later ones of the same major number.
    pub capability: (u32, u32),
    /// It runs on this one alone, whose own instructions it uses.
    pub is_exact: bool,
    pub sources: Sources,
}

impl Image {
    pub(super) fn fits(&self, (major, minor): (u32, u32)) -> bool {
        let is_late_enough = if self.is_exact { minor == self.capability.1 } else { minor >= self.capability.1 };
        major == self.capability.0 && is_late_enough
    }
}

/// Newest first, so that the first that fits is the best.
pub(super) const IMAGES: &[Image] = &[
    Image { capability: (12, 0), is_exact: false, sources: SM_120 },
    Image { capability: (10, 0), is_exact: false, sources: SM_100 },
    Image { capability: (9, 0), is_exact: true, sources: SM_90A },
    Image { capability: (8, 9), is_exact: false, sources: SM_89 },
    Image { capability: (8, 6), is_exact: false, sources: SM_86 },
    Image { capability: (8, 0), is_exact: false, sources: SM_80 },
];

const SM_120: Sources = &[
    ("attn", include_bytes!("../../kernels/prebuilt/sm_120/attn.cubin.xz")),
    ("attn_split", include_bytes!("../../kernels/prebuilt/sm_120/attn_split.cubin.xz")),
    ("dequant", include_bytes!("../../kernels/prebuilt/sm_120/dequant.cubin.xz")),
    ("elem", include_bytes!("../../kernels/prebuilt/sm_120/elem.cubin.xz")),
    ("gemm_sm80", include_bytes!("../../kernels/prebuilt/sm_120/gemm_sm80.cubin.xz")),
    ("gemv", include_bytes!("../../kernels/prebuilt/sm_120/gemv.cubin.xz")),
    ("nll", include_bytes!("../../kernels/prebuilt/sm_120/nll.cubin.xz")),
];

const SM_100: Sources = &[
    ("attn", include_bytes!("../../kernels/prebuilt/sm_100/attn.cubin.xz")),
    ("attn_split", include_bytes!("../../kernels/prebuilt/sm_100/attn_split.cubin.xz")),
    ("dequant", include_bytes!("../../kernels/prebuilt/sm_100/dequant.cubin.xz")),
    ("elem", include_bytes!("../../kernels/prebuilt/sm_100/elem.cubin.xz")),
    ("gemm_sm80", include_bytes!("../../kernels/prebuilt/sm_100/gemm_sm80.cubin.xz")),
    ("gemv", include_bytes!("../../kernels/prebuilt/sm_100/gemv.cubin.xz")),
    ("nll", include_bytes!("../../kernels/prebuilt/sm_100/nll.cubin.xz")),
];

const SM_90A: Sources = &[
    ("attn", include_bytes!("../../kernels/prebuilt/sm_90a/attn.cubin.xz")),
    ("attn_split", include_bytes!("../../kernels/prebuilt/sm_90a/attn_split.cubin.xz")),
    ("dequant", include_bytes!("../../kernels/prebuilt/sm_90a/dequant.cubin.xz")),
    ("elem", include_bytes!("../../kernels/prebuilt/sm_90a/elem.cubin.xz")),
    ("gemm_sm80", include_bytes!("../../kernels/prebuilt/sm_90a/gemm_sm80.cubin.xz")),
    ("gemm_sm90", include_bytes!("../../kernels/prebuilt/sm_90a/gemm_sm90.cubin.xz")),
    ("gemv", include_bytes!("../../kernels/prebuilt/sm_90a/gemv.cubin.xz")),
    ("nll", include_bytes!("../../kernels/prebuilt/sm_90a/nll.cubin.xz")),
];

const SM_89: Sources = &[
    ("attn", include_bytes!("../../kernels/prebuilt/sm_89/attn.cubin.xz")),
    ("attn_split", include_bytes!("../../kernels/prebuilt/sm_89/attn_split.cubin.xz")),
    ("dequant", include_bytes!("../../kernels/prebuilt/sm_89/dequant.cubin.xz")),
    ("elem", include_bytes!("../../kernels/prebuilt/sm_89/elem.cubin.xz")),
    ("gemm_sm80", include_bytes!("../../kernels/prebuilt/sm_89/gemm_sm80.cubin.xz")),
    ("gemv", include_bytes!("../../kernels/prebuilt/sm_89/gemv.cubin.xz")),
    ("nll", include_bytes!("../../kernels/prebuilt/sm_89/nll.cubin.xz")),
];

const SM_86: Sources = &[
    ("attn", include_bytes!("../../kernels/prebuilt/sm_86/attn.cubin.xz")),
    ("attn_split", include_bytes!("../../kernels/prebuilt/sm_86/attn_split.cubin.xz")),
    ("dequant", include_bytes!("../../kernels/prebuilt/sm_86/dequant.cubin.xz")),
    ("elem", include_bytes!("../../kernels/prebuilt/sm_86/elem.cubin.xz")),
    ("gemm_sm80", include_bytes!("../../kernels/prebuilt/sm_86/gemm_sm80.cubin.xz")),
    ("gemv", include_bytes!("../../kernels/prebuilt/sm_86/gemv.cubin.xz")),
    ("nll", include_bytes!("../../kernels/prebuilt/sm_86/nll.cubin.xz")),
];

const SM_80: Sources = &[
    ("attn", include_bytes!("../../kernels/prebuilt/sm_80/attn.cubin.xz")),
    ("attn_split", include_bytes!("../../kernels/prebuilt/sm_80/attn_split.cubin.xz")),
    ("dequant", include_bytes!("../../kernels/prebuilt/sm_80/dequant.cubin.xz")),
    ("elem", include_bytes!("../../kernels/prebuilt/sm_80/elem.cubin.xz")),
    ("gemm_sm80", include_bytes!("../../kernels/prebuilt/sm_80/gemm_sm80.cubin.xz")),
    ("gemv", include_bytes!("../../kernels/prebuilt/sm_80/gemv.cubin.xz")),
    ("nll", include_bytes!("../../kernels/prebuilt/sm_80/nll.cubin.xz")),
];

/// For GPUs newer than all of them: the driver compiles it, which takes it some seconds the first time.
pub(super) const PTX: Sources = &[
    ("attn", include_bytes!("../../kernels/prebuilt/compute_80/attn.ptx.xz")),
    ("attn_split", include_bytes!("../../kernels/prebuilt/compute_80/attn_split.ptx.xz")),
    ("dequant", include_bytes!("../../kernels/prebuilt/compute_80/dequant.ptx.xz")),
    ("elem", include_bytes!("../../kernels/prebuilt/compute_80/elem.ptx.xz")),
    ("gemm_sm80", include_bytes!("../../kernels/prebuilt/compute_80/gemm_sm80.ptx.xz")),
    ("gemv", include_bytes!("../../kernels/prebuilt/compute_80/gemv.ptx.xz")),
    ("nll", include_bytes!("../../kernels/prebuilt/compute_80/nll.ptx.xz")),
];

/// Which source has a kernel.
pub(super) fn source_of(kernel: &str) -> &'static str {
    const BY_PREFIX: &[(&str, &str)] = &[
        ("attn_merge_", "attn_split"),
        ("attn_split_", "attn_split"),
        ("attn_", "attn"),
        ("dequant_", "dequant"),
        ("gemm_sm90_", "gemm_sm90"),
        ("gemm_", "gemm_sm80"),
        ("gemv_", "gemv"),
        ("kld_", "nll"),
        ("nll_", "nll"),
    ];
    BY_PREFIX.iter().find(|(prefix, _)| kernel.starts_with(prefix)).map_or("elem", |(_, source)| source)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image_for(capability: (u32, u32)) -> Option<(u32, u32)> {
        IMAGES.iter().find(|image| image.fits(capability)).map(|image| image.capability)
    }

    #[test]
    fn every_gpu_gets_the_newest_code_that_runs_on_it() {
        for (gpu, image) in [
            ((8, 0), Some((8, 0))),
            ((8, 6), Some((8, 6))),
            ((8, 7), Some((8, 6))),
            ((8, 9), Some((8, 9))),
            ((9, 0), Some((9, 0))),
            ((10, 0), Some((10, 0))),
            ((10, 3), Some((10, 0))),
            ((12, 0), Some((12, 0))),
            ((9, 1), None), // the code of 9.0 is for 9.0 alone
            ((7, 5), None),
            ((13, 0), None),
        ] {
            assert_eq!(image_for(gpu), image, "{gpu:?}");
        }
    }

    #[test]
    fn every_kind_of_gpu_has_every_source() {
        let names =
            |sources: Sources| sources.iter().map(|(name, _)| *name).filter(|name| *name != "gemm_sm90").collect::<Vec<_>>();
        for image in IMAGES {
            assert_eq!(names(image.sources), names(PTX), "{:?}", image.capability);
        }
    }
}

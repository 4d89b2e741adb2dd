//! Carries a plan out: rows in parallel, bounded memory, atomic commit. Does not know why a type was chosen.

//! Which of several things are worth choosing, where each has a size and a value and less of both is better.

/// Files that differ by less in size are as large as each other: one says more of how it was made.
const SAME_SIZE: u64 = 1000;

/// For each thing, which other one beats it: no larger (by more than a thousandth) and of a smaller value, or smaller and of the same; of
/// several, that with the best value. `None` for those that make up the Pareto line, and for values that are no numbers.
pub fn beaten_by(things: &[(u64, f64)]) -> Vec<Option<usize>> {
    let beats = |(size_a, a): (u64, f64), (size_b, b): (u64, f64)| {
        (a < b && size_a <= size_b.saturating_add(size_b / SAME_SIZE)) || (a == b && size_a < size_b)
    };
    let of = |&thing: &(u64, f64)| {
        let better = things.iter().enumerate().filter(|(_, other)| beats(**other, thing));
        better.min_by(|(_, a), (_, b)| a.1.total_cmp(&b.1).then(a.0.cmp(&b.0))).map(|(index, _)| index)
    };
    things.iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::beaten_by;

    #[test]
    fn a_thing_is_beaten_by_what_is_no_larger_and_better() {
        let things = [(10, 0.5), (20, 0.1), (15, 0.6), (30, 0.1), (40, 0.05), (10, 0.5), (20, f64::NAN)];
        assert_eq!(beaten_by(&things), [None, None, Some(0), Some(1), None, None, None]);
        assert_eq!(beaten_by(&[(3, 0.3), (2, 0.2), (1, 0.1)]), [Some(2), Some(2), None]);
        assert_eq!(beaten_by(&[(14_824_352, 0.3), (14_824_160, 1.1), (14_900_000, 0.2)]), [None, Some(0), None]);
        assert_eq!(beaten_by(&[]), []);
    }
}

//! Which parts of the device's memory are free, and what must have happened before a free part is written again.
//!
//! ```text
//!   0                                                                        end
//!   | activations, from below -> |   free   | free, fence | <- weights, from above |
//! ```
//!
//! Memory that is added later begins behind a gap, so that nothing is ever given out that lies in two allocations.
//!
//! Work on the compute stream follows in order, so what it takes over from itself needs no fence. A weight is written by the copy
//! stream: before it writes to a part that computations used, it must wait for them. Each free part therefore carries a fence, and
//! parts with different fences stay apart, so that a weight is not made to wait for more than those who used its place.

/// Every range starts at a multiple of this: more than what any kernel or copy wants.
pub(super) const ALIGNMENT: u64 = 256;

/// What must have happened before the copy stream may write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fence<E> {
    /// Nothing: it has not been used.
    Open,
    /// This event, which is the `serial`-th of its kind, counted from 1.
    Event { serial: u64, event: E },
    /// All that the compute stream has been given so far.
    Everything,
}

impl<E> Fence<E> {
    /// Later fences have higher numbers; equal numbers are the same fence.
    fn serial(&self) -> u64 {
        match self {
            Fence::Open => 0,
            Fence::Event { serial, .. } => *serial,
            Fence::Everything => u64::MAX,
        }
    }
}

#[derive(Debug)]
struct Part<E> {
    at: u64,
    len: u64,
    fence: Fence<E>,
}

/// The free ranges, in order and without overlap.
#[derive(Debug)]
pub(super) struct Ranges<E> {
    free: Vec<Part<E>>,
    /// Where what is added begins.
    end: u64,
    /// Without the gaps.
    len: u64,
    used: u64,
    peak: u64,
}

/// A run of neighbouring free parts that is long enough.
struct Run {
    first: usize,
    end: usize,
    /// 0 for parts without a fence; the highest for `Everything`.
    serial: u64,
}

impl<E: Clone> Ranges<E> {
    pub(super) fn new() -> Ranges<E> {
        Ranges { free: Vec::new(), end: 0, len: 0, used: 0, peak: 0 }
    }

    /// Adds `len` bytes, whole units of the alignment; returns where they begin.
    pub(super) fn grow(&mut self, len: u64) -> u64 {
        assert!(len.is_multiple_of(ALIGNMENT), "whole units");
        let at = self.end;
        self.free.push(Part { at, len, fence: Fence::Open });
        self.len += len;
        self.end += len + ALIGNMENT;
        at
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn used(&self) -> u64 {
        self.used
    }

    /// The most that was ever in use.
    pub(super) fn peak(&self) -> u64 {
        self.peak
    }

    /// The longest range that is free.
    pub(super) fn longest(&self) -> u64 {
        let mut longest = 0;
        let mut run = 0;
        for (i, part) in self.free.iter().enumerate() {
            let is_neighbour = i > 0 && self.free[i - 1].at + self.free[i - 1].len == part.at;
            run = if is_neighbour { run + part.len } else { part.len };
            longest = longest.max(run);
        }
        longest
    }

    /// `len` bytes for the compute stream, the lowest that are free.
    pub(super) fn take_low(&mut self, len: u64) -> Option<u64> {
        let run = self.runs(len, false).next()?;
        let at = self.free[run.first].at;
        self.take(&run, at, len);
        Some(at)
    }

    /// `len` bytes for the copy stream, and what it has to wait for: those whose fence is oldest, of equals the highest. `is_past`
    /// tells that an event has happened.
    pub(super) fn take_high(&mut self, len: u64, is_past: impl Fn(&E) -> bool) -> Option<(u64, Vec<Fence<E>>)> {
        for part in &mut self.free {
            if matches!(&part.fence, Fence::Event { event, .. } if is_past(event)) {
                part.fence = Fence::Open;
            }
        }
        let run = self.runs(len, true).min_by_key(|run| run.serial)?;
        let last = &self.free[run.end - 1];
        let at = last.at + last.len - len;
        let fences = self.take(&run, at, len);
        Some((at, fences))
    }

    /// Gives a range back.
    pub(super) fn give(&mut self, at: u64, len: u64, fence: Fence<E>) {
        self.used -= len;
        let index = self.free.partition_point(|part| part.at < at);
        self.free.insert(index, Part { at, len, fence });
        self.merge(index);
        if index > 0 {
            self.merge(index - 1);
        }
    }

    /// Joins part `index` with the one after it, where nothing tells them apart.
    fn merge(&mut self, index: usize) {
        if let [a, b, ..] = &self.free[index..]
            && a.at + a.len == b.at
            && a.fence.serial() == b.fence.serial()
        {
            self.free[index].len += self.free[index + 1].len;
            self.free.remove(index + 1);
        }
    }

    /// Runs of parts that hold `len`, none longer than needed: from the lowest start, or from the highest end.
    fn runs(&self, len: u64, from_above: bool) -> impl Iterator<Item = Run> {
        let n_parts = self.free.len();
        let starts = (0..n_parts).map(move |i| if from_above { n_parts - 1 - i } else { i });
        starts.filter_map(move |start| {
            let (mut first, mut end, mut have) = (start, start + 1, self.free[start].len);
            while have < len {
                let next = if from_above { first.checked_sub(1)? } else { end };
                let part = self.free.get(next)?;
                let is_neighbour = if from_above {
                    part.at + part.len == self.free[first].at
                } else {
                    self.free[end - 1].at + self.free[end - 1].len == part.at
                };
                if !is_neighbour {
                    return None;
                }
                have += part.len;
                (first, end) = if from_above { (next, end) } else { (first, next + 1) };
            }
            let serial = self.free[first..end].iter().map(|part| part.fence.serial());
            Some(Run { first, end, serial: serial.max().unwrap_or(0) })
        })
    }

    /// Takes `at .. at + len` out of a run; returns the fences of the parts it touches.
    fn take(&mut self, run: &Run, at: u64, len: u64) -> Vec<Fence<E>> {
        let parts: Vec<Part<E>> = self.free.drain(run.first..run.end).collect();
        let mut insert_at = run.first;
        let mut fences = Vec::new();
        for part in parts {
            let end = part.at + part.len;
            for (rest_at, rest_end) in [(part.at, end.min(at)), (part.at.max(at + len), end)] {
                if rest_at < rest_end {
                    self.free.insert(insert_at, Part { at: rest_at, len: rest_end - rest_at, fence: part.fence.clone() });
                    insert_at += 1;
                }
            }
            if part.at < at + len && at < end && part.fence.serial() > 0 {
                fences.push(part.fence);
            }
        }
        self.used += len;
        self.peak = self.peak.max(self.used);
        fences
    }
}

/// `len` rounded up to whole units of the alignment; at least one.
pub(super) fn padded(len: u64) -> Option<u64> {
    len.max(1).checked_next_multiple_of(ALIGNMENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIT: u64 = ALIGNMENT;

    fn event(serial: u64) -> Fence<u64> {
        Fence::Event { serial, event: serial }
    }

    fn ranges(len: u64) -> Ranges<u64> {
        let mut ranges = Ranges::new();
        assert_eq!(ranges.grow(len), 0);
        ranges
    }

    #[test]
    fn activations_lie_low_and_weights_high() {
        let mut ranges = ranges(10 * UNIT);
        assert_eq!(ranges.len(), 10 * UNIT);
        assert_eq!(ranges.take_low(2 * UNIT), Some(0));
        assert_eq!(ranges.take_high(3 * UNIT, |_| false), Some((7 * UNIT, vec![])));
        assert_eq!(ranges.take_low(UNIT), Some(2 * UNIT));
        assert_eq!(ranges.longest(), 4 * UNIT);
        assert_eq!(ranges.take_low(5 * UNIT), None);
        assert_eq!((ranges.used(), ranges.peak()), (6 * UNIT, 6 * UNIT));
        ranges.give(0, 2 * UNIT, Fence::Everything);
        assert_eq!((ranges.used(), ranges.peak()), (4 * UNIT, 6 * UNIT));
        assert_eq!(ranges.take_low(UNIT), Some(0));
    }

    #[test]
    fn a_weight_waits_for_those_who_used_its_place_and_nobody_else() {
        let mut ranges = ranges(4 * UNIT);
        for _ in 0..4 {
            ranges.take_high(UNIT, |_| false).expect("room");
        }
        ranges.give(3 * UNIT, UNIT, event(7));
        ranges.give(2 * UNIT, UNIT, event(5));
        ranges.give(0, UNIT, Fence::Everything);
        // The oldest fence, though it is not the highest place.
        assert_eq!(ranges.take_high(UNIT, |_| false), Some((2 * UNIT, vec![event(5)])));
        ranges.give(2 * UNIT, UNIT, event(8));
        // A run over two parts has the fences of both.
        assert_eq!(ranges.take_high(2 * UNIT, |_| false), Some((2 * UNIT, vec![event(8), event(7)])));
        ranges.give(2 * UNIT, 2 * UNIT, event(9));
        // An event that has happened is no fence.
        assert_eq!(ranges.take_high(2 * UNIT, |event| *event == 9), Some((2 * UNIT, vec![])));
        assert_eq!(ranges.take_high(UNIT, |_| false), Some((0, vec![Fence::Everything])));
        assert_eq!(ranges.take_high(UNIT, |_| false), None);
    }

    #[test]
    fn what_is_given_back_is_whole_again() {
        let mut ranges = ranges(8 * UNIT);
        let low: Vec<u64> = (0..8).map(|_| ranges.take_low(UNIT).expect("room")).collect();
        for at in [3, 1, 0, 2, 7, 5, 6, 4] {
            ranges.give(low[at], UNIT, Fence::Everything);
        }
        assert_eq!(ranges.free.len(), 1);
        assert_eq!((ranges.longest(), ranges.used(), ranges.peak()), (8 * UNIT, 0, 8 * UNIT));
    }

    #[test]
    fn nothing_lies_in_two_allocations() {
        let mut ranges = ranges(4 * UNIT);
        assert_eq!(ranges.grow(3 * UNIT), 5 * UNIT);
        assert_eq!((ranges.len(), ranges.longest()), (7 * UNIT, 4 * UNIT));
        assert_eq!((ranges.take_low(5 * UNIT), ranges.take_high(5 * UNIT, |_| true)), (None, None));
        assert_eq!(ranges.take_low(3 * UNIT), Some(0));
        assert_eq!(ranges.take_low(2 * UNIT), Some(5 * UNIT));
        assert_eq!(ranges.take_high(UNIT, |_| true), Some((7 * UNIT, vec![])));
        for (at, len) in [(0, 3), (5, 2), (7, 1)] {
            ranges.give(at * UNIT, len * UNIT, Fence::Open);
        }
        assert_eq!((ranges.free.len(), ranges.longest(), ranges.used()), (2, 4 * UNIT, 0));
    }

    /// Against a map of every unit, over random calls.
    #[test]
    fn nothing_is_given_out_twice() {
        const UNITS: u64 = 40;
        let mut ranges = ranges(UNITS * UNIT);
        let mut owners = vec![None; UNITS as usize];
        let mut held: Vec<(u64, u64)> = Vec::new();
        let mut random = 1u64;
        let mut draw = |below: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % below
        };
        for step in 0..20_000u64 {
            let len = 1 + draw(8);
            let taken = match draw(4) {
                0 => ranges.take_low(len * UNIT),
                1 => ranges.take_high(len * UNIT, |event| event + 50 < step).map(|(at, _)| at),
                _ if held.is_empty() => None,
                _ => {
                    let (at, len) = held.swap_remove(draw(held.len() as u64) as usize);
                    owners[at as usize..(at + len) as usize].fill(None);
                    ranges.give(at * UNIT, len * UNIT, [Fence::Everything, event(step)][draw(2) as usize].clone());
                    None
                }
            };
            if let Some(at) = taken {
                let place = &mut owners[(at / UNIT) as usize..][..len as usize];
                assert!(place.iter().all(Option::is_none), "step {step}: given out twice");
                place.fill(Some(step));
                held.push((at / UNIT, len));
            }
            assert_eq!(ranges.used(), UNIT * owners.iter().flatten().count() as u64);
            let longest = owners.split(Option::is_some).map(<[_]>::len).max().unwrap_or(0);
            assert_eq!(ranges.longest(), longest as u64 * UNIT, "step {step}");
        }
    }
}

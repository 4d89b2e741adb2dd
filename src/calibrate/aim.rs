//! Which type each matrix gets, so that all together take no more bytes than allowed and cost least.
//!
//! What a matrix costs at a type is known from held-out text. For one price of a byte every matrix has a best type of its own; the price
//! at which the bytes are just enough is found by bisection, and what is left goes to those that gain most by it.

use crate::quant::Format;

/// Types for matrices whose rows are whole super-blocks, and for others: every runtime reads these, and reads them fast.
const SUPER_BLOCKS: &[Format] = &[Format::Q2_K, Format::Q3_K, Format::Q4_K, Format::Q5_K, Format::Q6_K, Format::Q8_0];
const BLOCKS: &[Format] = &[Format::Q4_0, Format::Q5_0, Format::Q8_0];

/// The types that a matrix with rows of `n_cols` may get, smallest first; none where its rows are no whole blocks.
pub(super) fn menu(n_cols: usize) -> &'static [Format] {
    match n_cols {
        n if n.is_multiple_of(256) => SUPER_BLOCKS,
        n if n.is_multiple_of(32) => BLOCKS,
        _ => &[],
    }
}

/// A type that a tensor may get.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Offer {
    pub format: Format,
    pub bytes: u64,
    /// In nats, added up over held-out text.
    pub cost: f64,
}

/// One of the offers for each tensor, by index: at most `budget_bytes` together. `None` where even the smallest are more.
///
/// `offers`: of each tensor, smallest first, one at least.
pub(super) fn choose(offers: &[Vec<Offer>], budget_bytes: u64) -> Option<Vec<usize>> {
    let bytes = |chosen: &[usize]| -> u64 { chosen.iter().zip(offers).map(|(&at, offers)| offers[at].bytes).sum() };
    let smallest = vec![0; offers.len()];
    if bytes(&smallest) > budget_bytes {
        return None;
    }
    let at_price = |price: f64| -> Vec<usize> {
        let worth = |offer: &Offer| offer.cost + price * offer.bytes as f64;
        let best = |offers: &Vec<Offer>| {
            (0..offers.len()).min_by(|&a, &b| worth(&offers[a]).total_cmp(&worth(&offers[b]))).expect("one offer at least")
        };
        offers.iter().map(best).collect()
    };
    // Prices between nothing and one at which nobody pays for a byte.
    let (mut low, mut high) = (0.0, 1e30);
    let mut chosen = at_price(low);
    if bytes(&chosen) > budget_bytes {
        chosen = smallest;
        for _ in 0..BISECTIONS {
            // Prices span many powers of ten.
            let middle = if low == 0.0 { high * 1e-6 } else { f64::sqrt(low * high) };
            let at_middle = at_price(middle);
            if bytes(&at_middle) > budget_bytes {
                low = middle;
            } else {
                high = middle;
                chosen = at_middle;
            }
            if high < 1e-300 {
                break;
            }
        }
    }
    // What is left, to whoever gains most for each byte.
    loop {
        let left = budget_bytes - bytes(&chosen);
        let gains = chosen.iter().zip(offers).enumerate().flat_map(|(tensor, (&now, offers))| {
            let gain = move |next: usize| {
                let (from, to) = (&offers[now], &offers[next]);
                (to.bytes > from.bytes && to.bytes - from.bytes <= left && to.cost < from.cost)
                    .then(|| ((from.cost - to.cost) / (to.bytes - from.bytes) as f64, tensor, next))
            };
            (0..offers.len()).filter_map(gain)
        });
        match gains.max_by(|a, b| a.0.total_cmp(&b.0)) {
            Some((_, tensor, next)) => chosen[tensor] = next,
            None => return Some(chosen),
        }
    }
}

/// Enough for any budget: each takes the root of the quotient of the prices that are left.
const BISECTIONS: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;

    fn offers(costs: &[f64]) -> Vec<Offer> {
        let formats = [Format::Q2_K, Format::Q4_K, Format::Q8_0];
        costs.iter().zip(formats).enumerate().map(|(at, (&cost, format))| Offer { format, bytes: 100 << at, cost }).collect()
    }

    #[test]
    fn bytes_go_where_they_save_most() {
        let tensors = [offers(&[8.0, 1.0, 0.1]), offers(&[0.4, 0.2, 0.1]), offers(&[80.0, 10.0, 1.0])];
        assert_eq!(choose(&tensors, 299), None);
        assert_eq!(choose(&tensors, 300), Some(vec![0, 0, 0]));
        assert_eq!(choose(&tensors, 400), Some(vec![0, 0, 1]));
        assert_eq!(choose(&tensors, 700), Some(vec![1, 0, 2]));
        assert_eq!(choose(&tensors, 5000), Some(vec![2, 2, 2]));
    }

    /// Never more than allowed, and no offer left that would fit and be better.
    #[test]
    fn the_budget_is_kept_and_used() {
        let tensors: Vec<Vec<Offer>> =
            (1..30).map(|i| offers(&[f64::from(i * i), f64::from(i) / 3.0, f64::from(i % 7) / 50.0])).collect();
        for budget_bytes in (2900..12_000).step_by(37) {
            let chosen = choose(&tensors, budget_bytes).expect("a budget above the smallest");
            let bytes: u64 = chosen.iter().zip(&tensors).map(|(&at, offers)| offers[at].bytes).sum();
            assert!(bytes <= budget_bytes);
            for (&at, offers) in chosen.iter().zip(&tensors) {
                assert!(
                    offers
                        .get(at + 1)
                        .is_none_or(|next| bytes - offers[at].bytes + next.bytes > budget_bytes || next.cost >= offers[at].cost)
                );
            }
        }
    }
}

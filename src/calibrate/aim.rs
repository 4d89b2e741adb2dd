//! Which type each matrix gets, so that all together take no more bytes than allowed and cost least.
//!
//! What a matrix costs at a type is known from held-out text. For one price of a byte every matrix has a best type of its own; the price
//! at which the bytes are just enough is found by bisection. What is left goes to those that gain most by it, and to pairs of which one
//! gains more than the other loses: so a model of few matrices uses its bytes, too.

use crate::quant::Format;

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
    let budget = Budget { offers, bytes: budget_bytes };
    loop {
        budget.fill(&mut chosen);
        if !budget.exchange(&mut chosen) {
            return Some(chosen);
        }
    }
}

struct Budget<'o> {
    offers: &'o [Vec<Offer>],
    bytes: u64,
}

/// A tensor that gets another of its offers, and what comes of it.
#[derive(Debug, Clone, Copy)]
struct Step {
    tensor: usize,
    to: usize,
    bytes: i64,
    cost: f64,
}

/// Steps that are tried in pairs at most: with more, what is left is a small part of the bytes already.
const STEPS_MAX: usize = 4000;

impl Budget<'_> {
    fn left(&self, chosen: &[usize]) -> i64 {
        let bytes: u64 = chosen.iter().zip(self.offers).map(|(&at, offers)| offers[at].bytes).sum();
        self.bytes as i64 - bytes as i64
    }

    fn steps(&self, chosen: &[usize]) -> Vec<Step> {
        let of_tensor = |(tensor, (&now, offers)): (usize, (&usize, &Vec<Offer>))| -> Vec<Step> {
            let from = offers[now];
            let step = |(to, offer): (usize, &Offer)| Step {
                tensor,
                to,
                bytes: offer.bytes as i64 - from.bytes as i64,
                cost: offer.cost - from.cost,
            };
            offers.iter().enumerate().filter(|(to, _)| *to != now).map(step).collect()
        };
        chosen.iter().zip(self.offers).enumerate().flat_map(of_tensor).collect()
    }

    /// What is left, to whoever gains most for each byte.
    fn fill(&self, chosen: &mut [usize]) {
        loop {
            let left = self.left(chosen);
            let gains = self.steps(chosen).into_iter().filter(|step| step.bytes <= left && step.cost < 0.0);
            let of_a_byte = |step: &Step| -step.cost / step.bytes.max(1) as f64;
            let Some(best) = gains.max_by(|a, b| of_a_byte(a).total_cmp(&of_a_byte(b))) else { return };
            chosen[best.tensor] = best.to;
        }
    }

    /// One tensor gets fewer bytes and another more, where both together cost less; false where no pair does.
    fn exchange(&self, chosen: &mut [usize]) -> bool {
        let (left, steps) = (self.left(chosen), self.steps(chosen));
        if steps.len() > STEPS_MAX {
            return false;
        }
        let mut best: Option<(f64, Step, Step)> = None;
        for up in steps.iter().filter(|step| step.cost < 0.0) {
            for down in steps.iter().filter(|step| step.tensor != up.tensor && up.bytes + step.bytes <= left) {
                let cost = up.cost + down.cost;
                // By more than rounding, so that it comes to an end.
                if cost < 1e-9 * up.cost && best.is_none_or(|(least, ..)| cost < least) {
                    best = Some((cost, *up, *down));
                }
            }
        }
        let Some((_, up, down)) = best else { return false };
        (chosen[up.tensor], chosen[down.tensor]) = (up.to, down.to);
        true
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

    /// Two tensors of which the larger cannot get more: it does when the other gives up what it hardly needs.
    #[test]
    fn pairs_exchange_bytes_where_both_together_gain() {
        let offer = |format, bytes, cost| Offer { format, bytes, cost };
        let small = vec![offer(Format::Q2_K, 10, 5.0), offer(Format::Q4_K, 40, 1.0)];
        let large = vec![offer(Format::Q2_K, 100, 30.0), offer(Format::Q4_K, 190, 20.0)];
        assert_eq!(choose(&[small.clone(), large.clone()], 229), Some(vec![0, 1]));
        assert_eq!(choose(&[small, large], 199), Some(vec![1, 0]));
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

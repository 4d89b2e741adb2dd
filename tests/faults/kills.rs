//! A thousand kills of each command that writes, at any time of its run. Minutes: `cargo test --test faults -- --ignored kills --nocapture`.

use super::commands::{COMMANDS, Inputs, State, Writing};
use super::*;

const N_KILLS: u32 = 1000;

#[test]
#[ignore = "1,000 kills of each command take minutes"]
fn a_thousand_kills_of_each_command_leave_old_or_new() {
    let inputs = Inputs::new();
    for arguments in COMMANDS {
        println!("{}", kill(&Writing::new(&inputs, arguments), N_KILLS));
    }
}

/// What kills were met with.
#[derive(Debug, Default)]
struct Counts {
    /// Nothing had its name yet.
    before: u32,
    /// The names of a set were being given.
    between: u32,
    /// The outputs were complete.
    after: u32,
    /// The run had ended.
    late: u32,
    /// Runs in all.
    runs: u32,
}

/// Kills runs at moments that are spread evenly over the time of one, every other with `--force` over older outputs, until so many were
/// caught. Returns a line about it.
fn kill(writing: &Writing<'_>, n_kills: u32) -> String {
    let mut paint = Paint::new(7);
    let mut counts = Counts::default();
    while counts.before + counts.between + counts.after < n_kills {
        let is_forced = counts.runs.is_multiple_of(2);
        match is_forced {
            true => writing.restore_old(),
            false => writing.clear(),
        }
        let mut child = writing.spawn(writing.run().args(is_forced.then_some("--force")));
        // What runs besides makes some runs longer than those that were timed.
        thread::sleep(moment(&mut paint, writing.duration.mul_f64(1.2)));
        signal(&child, Signal::KILL);
        let is_killed = child.wait().unwrap().signal() == Some(9);
        let context = format!("run {} with force {is_forced}, killed {is_killed}", counts.runs);
        let state = writing.state(&context);
        let (before, is_set) = (if is_forced { State::Old } else { State::Nothing }, writing.is_of_a_set());
        match state {
            State::New if is_killed => counts.after += 1,
            State::New => counts.late += 1,
            state if is_killed && state == before => counts.before += 1,
            State::Refused | State::Nothing if is_killed && is_set => counts.between += 1,
            state => panic!("{}, {context}: {state:?}", writing.arguments),
        }
        counts.runs += 1;
        assert!(counts.runs < 20 * n_kills, "{}: {counts:?}", writing.arguments);
        if counts.runs.is_multiple_of(10) {
            writing.a_rerun_is_complete();
        }
    }
    let Counts { before, between, after, late, runs } = counts;
    let ms = writing.duration.as_secs_f64() * 1e3;
    format!(
        "{}: {ms:.1} ms; of {runs} runs {before} killed before a name was given, {between} between names, {after} after, {late} had ended",
        writing.arguments
    )
}

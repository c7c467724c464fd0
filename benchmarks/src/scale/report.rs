//! The tables of `docs/scale.md`.

use std::{collections::BTreeMap, fmt::Write, time::Duration};

use super::{
    daemons::CONTROLLER,
    measure::Figures,
    reading::{Phase, Usage},
    size::AGENTS,
};

/// What was measured, as Markdown.
#[must_use]
pub fn report(figures: &Figures) -> String {
    let size = figures.size;
    let mut text = format!(
        "{} Nodes, {} Pods, {} policies; a rollout replaces {} of the pods. Programs built {} optimisation.\n\n### Memory\n\n",
        number(size.nodes),
        number(size.pods),
        number(size.policies),
        number(size.rollout),
        if cfg!(debug_assertions) {
            "without"
        } else {
            "with"
        }
    );
    memory(&mut text, figures);
    text.push_str("\n### Requests\n\n");
    requests(&mut text, figures);
    text.push_str("\n### What watches bring\n\n");
    watches(&mut text, figures);
    text.push_str("\n### Processor\n\n");
    processor(&mut text, figures);
    text.push_str("\n### How soon the kernel follows\n\n");
    settled(&mut text, figures);
    text
}

fn phases(figures: &Figures) -> [(&'static str, &Phase); 4] {
    [
        ("start", &figures.start),
        ("idle", &figures.idle),
        ("rollout", &figures.rollout),
        ("one policy for every pod", &figures.change),
    ]
}

fn daemons() -> impl Iterator<Item = &'static str> {
    [CONTROLLER].into_iter().chain(AGENTS.map(|(name, _)| name))
}

/// The header of a table, and the line below it.
fn header(text: &mut String, columns: &[&str]) {
    let _ = writeln!(
        text,
        "| {} |\n|{}",
        columns.join(" | "),
        "---|".repeat(columns.len())
    );
}

fn row(text: &mut String, cells: &[String]) {
    let _ = writeln!(text, "| {} |", cells.join(" | "));
}

fn memory(text: &mut String, figures: &Figures) {
    header(
        text,
        &[
            "MiB resident (of it no file)",
            "idle",
            "after the rollout",
            "at the end",
            "at most",
        ],
    );
    for name in daemons() {
        let at = |phase: &Phase| {
            phase
                .usage
                .get(name)
                .map(|usage| usage.memory)
                .unwrap_or_default()
        };
        let shown = |phase: &Phase| {
            format!(
                "{} ({})",
                mebibytes(at(phase).resident),
                mebibytes(at(phase).own)
            )
        };
        let cells = [
            shown(&figures.idle),
            shown(&figures.rollout),
            shown(&figures.change),
            mebibytes(at(&figures.change).peak),
        ];
        row(text, &[vec![name.to_owned()], cells.to_vec()].concat());
    }
}

fn requests(text: &mut String, figures: &Figures) {
    header(
        text,
        &[
            "requests",
            "start",
            "idle, a second",
            "rollout",
            "one policy for every pod",
            "which, when idle",
        ],
    );
    for name in daemons() {
        let of = |phase: &Phase| phase.usage.get(name).map_or(0, Usage::all_requests);
        let idle = figures
            .idle
            .usage
            .get(name)
            .map(|usage| usage.requests.clone())
            .unwrap_or_default();
        row(
            text,
            &[
                name.to_owned(),
                of(&figures.start).to_string(),
                rate(of(&figures.idle), figures.idle.length),
                with_length(of(&figures.rollout), &figures.rollout),
                with_length(of(&figures.change), &figures.change),
                listed(&idle),
            ],
        );
    }
    text.push_str("\nOf these, without Leases, watches that begin anew and the reads of service networks:\n\n");
    header(
        text,
        &[
            "requests",
            "start",
            "idle",
            "rollout",
            "one policy for every pod",
        ],
    );
    for name in daemons() {
        let of = |phase: &Phase| {
            phase
                .usage
                .get(name)
                .map(|usage| listed(&usage.work()))
                .unwrap_or_default()
        };
        row(
            text,
            &[
                vec![name.to_owned()],
                phases(figures).map(|(_, phase)| of(phase)).to_vec(),
            ]
            .concat(),
        );
    }
}

fn watches(text: &mut String, figures: &Figures) {
    header(
        text,
        &[
            "objects told of",
            "start",
            "idle, a second",
            "rollout",
            "of its own pods replaced",
            "pods, in the rollout",
        ],
    );
    for name in daemons() {
        let of = |phase: &Phase| {
            phase
                .usage
                .get(name)
                .map_or(0, |usage| usage.events.values().sum())
        };
        let pods = figures
            .rollout
            .usage
            .get(name)
            .and_then(|usage| usage.events.get("pods"))
            .copied();
        row(
            text,
            &[
                name.to_owned(),
                number(usize::try_from(of(&figures.start)).unwrap_or(usize::MAX)),
                rate(of(&figures.idle), figures.idle.length),
                of(&figures.rollout).to_string(),
                figures
                    .own
                    .get(name)
                    .map_or_else(|| "–".to_owned(), ToString::to_string),
                pods.map_or_else(|| "–".to_owned(), |pods| pods.to_string()),
            ],
        );
    }
    text.push('\n');
    header(
        text,
        &[
            "KiB received",
            "start",
            "idle, a second",
            "rollout",
            "one policy for every pod",
        ],
    );
    for name in daemons() {
        let of = |phase: &Phase| {
            phase
                .usage
                .get(name)
                .map_or(0, |usage| usage.received / 1024)
        };
        let idle = figures
            .idle
            .usage
            .get(name)
            .map_or(0, |usage| usage.received);
        let idle = format!("{:.1}", seconds_of(idle, figures.idle.length) / 1024.0);
        row(
            text,
            &[
                name.to_owned(),
                of(&figures.start).to_string(),
                idle,
                of(&figures.rollout).to_string(),
                of(&figures.change).to_string(),
            ],
        );
    }
}

fn processor(text: &mut String, figures: &Figures) {
    header(
        text,
        &[
            "seconds of a processor",
            "start",
            "idle, per cent",
            "rollout",
            "one policy for every pod",
        ],
    );
    for name in daemons() {
        let of = |phase: &Phase| {
            phase
                .usage
                .get(name)
                .map(|usage| usage.processor.as_secs_f64())
                .unwrap_or_default()
        };
        let idle = of(&figures.idle) * 100.0 / figures.idle.length.as_secs_f64();
        let cells = [
            of(&figures.start),
            of(&figures.rollout),
            of(&figures.change),
        ]
        .map(|seconds| format!("{seconds:.2}"));
        row(
            text,
            &[
                name.to_owned(),
                cells[0].clone(),
                format!("{idle:.2}"),
                cells[1].clone(),
                cells[2].clone(),
            ],
        );
    }
}

fn settled(text: &mut String, figures: &Figures) {
    let causes = [
        "start of the agent",
        "the rollout's last request",
        "one pod more",
        "one policy for every pod",
    ];
    header(text, &[&["milliseconds after"], causes.as_slice()].concat());
    for (name, _) in AGENTS {
        let shown = |settled: &BTreeMap<String, Duration>| {
            settled
                .get(name)
                .map_or_else(String::new, |after| after.as_millis().to_string())
        };
        row(
            text,
            &[
                vec![name.to_owned()],
                figures.settled.each_ref().map(shown).to_vec(),
            ]
            .concat(),
        );
    }
}

fn listed(requests: &BTreeMap<String, u64>) -> String {
    if requests.is_empty() {
        return "–".to_owned();
    }
    requests
        .iter()
        .map(|(request, number)| format!("{number} {request}"))
        .collect::<Vec<_>>()
        .join(", ")
}

fn with_length(number: u64, phase: &Phase) -> String {
    format!("{number} in {:.0} s", phase.length.as_secs_f64())
}

#[allow(clippy::cast_precision_loss)]
fn seconds_of(number: u64, length: Duration) -> f64 {
    number as f64 / length.as_secs_f64()
}

fn rate(number: u64, length: Duration) -> String {
    format!("{:.3}", seconds_of(number, length))
}

#[allow(clippy::cast_precision_loss)]
fn mebibytes(kibibytes: u64) -> String {
    format!("{:.1}", kibibytes as f64 / 1024.0)
}

/// With a comma between thousands.
fn number(number: usize) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> = digits
        .as_bytes()
        .rchunks(3)
        .rev()
        .filter_map(|group| std::str::from_utf8(group).ok())
        .collect();
    groups.join(",")
}

//! The product on a real cluster: kubelets, containerd, kube-proxy, a CNI, and a server outside
//! that says which source it sees.
//!
//! One cluster serves all tests of a run; each has a namespace, labels and a gateway of its own.
//! They run one after the other, in the order of the list: those that take nodes away come late,
//! and the removal comes last. `make e2e` builds what they need.
//!
//!   e2e [--list] [--short] [--variant NAME] [--keep] [--write FILE] [FILTER...]
//!   e2e --absences ROUNDS [--variant NAME] [--keep] [--write FILE]
//!
//! A filter is a part of a test's name. With --short those are left out that take minutes, or
//! programs that are built for them alone. With --keep the cluster runs on afterwards. --write puts
//! the table of what flows met between the markers of a page. The second form lets the API server
//! be away so many times, in different ways, and then removes the product.
#![allow(clippy::unwrap_used, missing_docs)]

mod addresses;
mod changes;
mod control;
mod losses;
mod policies;
mod removal;
mod services;
mod sources;
mod table;
mod watch;

use std::{
    net::IpAddr,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    process::ExitCode,
    time::Instant,
};

use egressgateway_testkit::{
    e2e::{self, Site, Variant, addresses},
    page,
    skip::skip,
};

use crate::table::Table;

/// What a test gets: the cluster, and the table of what was measured.
pub(crate) struct Run {
    pub(crate) site: Site,
    pub(crate) table: Table,
}

struct Test {
    name: &'static str,
    run: fn(&Run),
    /// Not in a short run.
    long: bool,
    /// Sets of programs that it needs besides what nodes run.
    programs: &'static [&'static str],
}

macro_rules! test {
    ($module:ident::$name:ident) => {
        Test {
            name: concat!(stringify!($module), "::", stringify!($name)),
            run: $module::$name,
            long: false,
            programs: &[],
        }
    };
}

fn list() -> Vec<Test> {
    vec![
        test!(sources::the_chart_is_ready_and_its_own_test_passes),
        test!(sources::governed_pods_leave_through_the_gateway_and_others_by_themselves),
        test!(services::a_policy_for_everything_leaves_the_cluster_alone),
        test!(services::a_service_in_front_of_the_outside_is_no_way_around),
        test!(addresses::an_address_of_a_completed_pod_is_governed_no_more),
        Test {
            long: true,
            programs: &["policies"],
            ..test!(policies::a_forbidden_pod_does_not_get_through_the_gateway)
        },
        test!(addresses::an_egress_address_is_moved_under_flows),
        test!(changes::agents_are_replaced_under_flows),
        test!(changes::the_backend_is_replaced_under_flows),
        test!(losses::a_gateway_loses_its_power),
        test!(losses::a_node_reboots),
        Test {
            long: true,
            ..test!(losses::gateways_reboot_one_after_the_other_and_no_connection_ends)
        },
        test!(control::the_api_server_is_away),
        test!(removal::nothing_is_left),
    ]
}

/// The address of a node in the family of another one.
pub(crate) fn node_address(node: &str, like: IpAddr) -> IpAddr {
    addresses(node)[usize::from(like.is_ipv6())]
}

struct Arguments {
    list: bool,
    short: bool,
    keep: bool,
    variant: Variant,
    write: Option<PathBuf>,
    absences: Option<usize>,
    filters: Vec<String>,
}

fn arguments() -> Result<Arguments, String> {
    let filters = Vec::new();
    let mut parsed = Arguments {
        list: false,
        short: false,
        keep: false,
        variant: Variant::Usual,
        write: None,
        absences: None,
        filters,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || {
            words
                .next()
                .ok_or_else(|| format!("{word}: something must follow"))
        };
        match word.as_str() {
            "--list" => parsed.list = true,
            "--short" => parsed.short = true,
            "--keep" => parsed.keep = true,
            "--variant" => parsed.variant = value()?.parse()?,
            "--write" => parsed.write = Some(value()?.into()),
            "--absences" => {
                parsed.absences = Some(
                    value()?
                        .parse()
                        .map_err(|error| format!("--absences: {error}"))?,
                );
            }
            // What the usual harness knows, and what is so here in any case.
            "--nocapture" | "--no-capture" | "--exact" => {}
            option if option.starts_with('-') => {
                return Err(format!(
                    "{option} is no option: --list, --short, --keep, --variant NAME, --write FILE, --absences ROUNDS"
                ));
            }
            filter => parsed.filters.push(filter.to_owned()),
        }
    }
    Ok(parsed)
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("e2e: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<bool, String> {
    let arguments = arguments()?;
    let named = |test: &Test| {
        arguments
            .filters
            .iter()
            .any(|filter| test.name.contains(filter.as_str()))
    };
    let wanted: Vec<Test> = list()
        .into_iter()
        .filter(|test| {
            if arguments.filters.is_empty() {
                !(arguments.short && test.long)
            } else {
                named(test)
            }
        })
        // The end of the other form.
        .filter(|test| arguments.absences.is_none() || test.name.starts_with("removal"))
        .collect();
    if arguments.list {
        for test in &wanted {
            println!("{}: test", test.name);
        }
        return Ok(true);
    }
    let mut programs: Vec<&str> = wanted
        .iter()
        .flat_map(|test| test.programs)
        .copied()
        .collect();
    programs.dedup();
    let assets = match e2e::assets(&programs) {
        Ok(assets) => assets,
        Err(error) => {
            skip(&format!("there can be no cluster: {error}"));
            return Ok(true);
        }
    };
    let site = Site::start(
        assets,
        PathBuf::from(env!("CARGO_BIN_EXE_e2e")),
        arguments.variant,
    )?;
    site.install_chart(&[])?;
    site.say("the chart is installed");
    let run = Run {
        site,
        table: Table::default(),
    };
    let mut failed = Vec::new();
    let absences = arguments.absences.map(|rounds| {
        let (table, wrong) = control::absences(&run, rounds);
        println!("\n{table}\n");
        failed.extend(wrong);
        table
    });
    println!("\nrunning {} tests", wanted.len());
    for test in &wanted {
        let began = Instant::now();
        let passed = catch_unwind(AssertUnwindSafe(|| (test.run)(&run))).is_ok();
        println!(
            "test {} ... {}",
            test.name,
            if passed { "ok" } else { "FAILED" }
        );
        eprintln!(
            "e2e: {:5.1} s  {}",
            began.elapsed().as_secs_f64(),
            test.name
        );
        if !passed {
            failed.push(test.name.to_owned());
        }
    }
    let passed = if failed.is_empty() { "ok" } else { "FAILED" };
    if !run.table.is_empty() {
        let table = run.table.to_string();
        let file = run.site.write_log("e2e-gaps.md", &format!("{table}\n"));
        println!("\n{table}\n\nalso in {}", file.display());
    }
    println!(
        "\ntest result: {passed}. {} run; {} failed; 0 ignored",
        wanted.len() + arguments.absences.unwrap_or_default(),
        failed.len()
    );
    if let Some(page) = arguments.write.as_ref().filter(|_| failed.is_empty()) {
        let written = match &absences {
            Some(table) => page::write(page, "absence", table),
            // A part of the table would replace all of it.
            None if arguments.filters.is_empty() => {
                page::write(page, "cluster", &run.table.to_string())
            }
            None => Err(std::io::Error::other(
                "some of the tests make no whole table",
            )),
        };
        written.map_err(|error| format!("{}: {error}", page.display()))?;
    }
    if arguments.keep {
        let directory = run.site.directory().display().to_string();
        run.site.keep().map_err(|error| error.to_string())?;
        println!(
            "the cluster runs on: {directory}/bin has kubectl, helm and node; `e2e down` ends it"
        );
    } else {
        run.site.end().map_err(|error| error.to_string())?;
    }
    Ok(failed.is_empty())
}

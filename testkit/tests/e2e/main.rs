//! The product on a real cluster: kubelets, containerd, kube-proxy, a CNI, and a server outside that says which source it sees.
//!
//! One cluster serves all tests of a run; each has a namespace, labels and a gateway of its own. They run one after the other, in the order of the list: those that take
//! nodes away come late, and the removal comes last. `make e2e` builds what they need.
//!
//!   e2e [--list] [--variant NAME] [--keep] [FILTER...]
//!
//! A filter is a part of a test's name. With --keep the cluster runs on afterwards.
#![allow(clippy::unwrap_used, missing_docs)]

mod addresses;
mod changes;
mod control;
mod losses;
mod removal;
mod services;
mod sources;
mod table;

use std::{
    net::IpAddr,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    process::ExitCode,
    time::Instant,
};

use egressgateway_testkit::{
    e2e::{self, Site, Variant, addresses},
    netns::REQUIRE_ALL,
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
}

macro_rules! tests {
    ($($module:ident::$name:ident),+ $(,)?) => {
        [$(Test { name: concat!(stringify!($module), "::", stringify!($name)), run: $module::$name }),+]
    };
}

fn list() -> Vec<Test> {
    tests![
        sources::the_chart_is_ready_and_its_own_test_passes,
        sources::governed_pods_leave_through_the_gateway_and_others_by_themselves,
        services::a_policy_for_everything_leaves_the_cluster_alone,
        services::a_service_in_front_of_the_outside_is_no_way_around,
        addresses::an_address_of_a_completed_pod_is_governed_no_more,
        changes::agents_are_replaced_under_flows,
        changes::the_backend_is_replaced_under_flows,
        losses::a_gateway_loses_its_power,
        losses::a_node_reboots,
        control::the_api_server_is_away,
        removal::nothing_is_left,
    ]
    .into()
}

/// The address of a node in the family of another one.
pub(crate) fn node_address(node: &str, like: IpAddr) -> IpAddr {
    addresses(node)[usize::from(like.is_ipv6())]
}

struct Arguments {
    list: bool,
    keep: bool,
    variant: Variant,
    filters: Vec<String>,
}

fn arguments() -> Result<Arguments, String> {
    let mut parsed = Arguments { list: false, keep: false, variant: Variant::Usual, filters: Vec::new() };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--list" => parsed.list = true,
            "--keep" => parsed.keep = true,
            "--variant" => parsed.variant = words.next().ok_or("--variant: a name must follow")?.parse()?,
            // What the usual harness knows, and what is so here in any case.
            "--nocapture" | "--no-capture" | "--exact" => {}
            option if option.starts_with('-') => return Err(format!("{option} is no option: --list, --keep, --variant NAME")),
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
    let named = |test: &Test| arguments.filters.iter().any(|filter| test.name.contains(filter.as_str()));
    let wanted: Vec<Test> = list().into_iter().filter(|test| arguments.filters.is_empty() || named(test)).collect();
    if arguments.list {
        for test in &wanted {
            println!("{}: test", test.name);
        }
        return Ok(true);
    }
    let assets = match e2e::assets() {
        Ok(assets) => assets,
        Err(error) if std::env::var_os(REQUIRE_ALL).is_some() => {
            return Err(format!("{REQUIRE_ALL} is set, and there can be no cluster: {error}"));
        }
        Err(error) => {
            eprintln!("skipped: {error}");
            return Ok(true);
        }
    };
    let site = Site::start(assets, PathBuf::from(env!("CARGO_BIN_EXE_e2e")), arguments.variant)?;
    site.install_chart(&[])?;
    site.say("the chart is installed");
    let run = Run { site, table: Table::default() };
    println!("\nrunning {} tests", wanted.len());
    let mut failed = Vec::new();
    for test in &wanted {
        let began = Instant::now();
        let passed = catch_unwind(AssertUnwindSafe(|| (test.run)(&run))).is_ok();
        println!("test {} ... {}", test.name, if passed { "ok" } else { "FAILED" });
        eprintln!("e2e: {:5.1} s  {}", began.elapsed().as_secs_f64(), test.name);
        if !passed {
            failed.push(test.name);
        }
    }
    let table = run.table.to_string();
    if !table.is_empty() {
        let file = run.site.write_log("e2e-gaps.md", &format!("{table}\n"));
        println!("\n{table}\n\nalso in {}", file.display());
    }
    let passed = wanted.len() - failed.len();
    let verdict = if failed.is_empty() { "ok" } else { "FAILED" };
    println!("\ntest result: {verdict}. {passed} passed; {} failed; 0 ignored", failed.len());
    if arguments.keep {
        let directory = run.site.directory().display().to_string();
        run.site.keep().map_err(|error| error.to_string())?;
        println!("the cluster runs on: {directory}/bin has kubectl, helm and node; `e2e down` ends it");
    } else {
        run.site.end().map_err(|error| error.to_string())?;
    }
    Ok(failed.is_empty())
}

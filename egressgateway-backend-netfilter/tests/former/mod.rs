//! What a version left that named some sets and chains otherwise. It was planned by that version
//! for worlds that tests share.

/// Lines of a shell that load it, with the iptables of this name.
pub(crate) fn load(iptables: &str, world: &str) -> String {
    let file = format!(
        "{}/tests/former/{world}.netfilter",
        env!("CARGO_MANIFEST_DIR")
    );
    let text = std::fs::read_to_string(file).unwrap();
    let parts = text
        .split("# ")
        .filter_map(|part| part.split_once('\n'))
        .map(|(program, input)| {
            let program = program.replace("tables-", &format!("tables-{iptables}-"));
            format!("{program} <<'END'\n{input}END\n")
        });
    parts.collect()
}

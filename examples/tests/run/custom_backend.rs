use crate::support::example;

#[test]
fn a_backend_of_ones_own_passes_the_suite_and_is_short() {
    let output = example("custom_backend").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(text.contains("+ 10.244.1.10 is of class"), "{text}");
    assert!(
        text.ends_with("printer keeps every promise of a policy backend\n"),
        "{text}"
    );
    assert!(include_str!("../../custom_backend.rs").lines().count() <= 160);
}

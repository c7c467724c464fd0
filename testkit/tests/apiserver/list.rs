//! What every API server does: one list for the testkit's and for a real one.

/// Calls `$with!` with the names of all checks.
macro_rules! every_rule {
    ($with:ident) => {
        $with! {
            objects_get_identity_and_a_version_at_birth
            a_name_is_taken_once_and_must_be_valid
            a_namespaced_object_needs_its_namespace
            an_update_of_an_old_version_is_a_conflict
            an_update_that_changes_nothing_keeps_the_version
            spec_and_status_are_written_apart_and_only_the_spec_counts_generations
            a_merge_patch_removes_what_it_sets_to_null
            two_appliers_own_their_fields
            an_apply_that_names_an_old_version_is_a_conflict
            apply_creates_an_object_but_not_its_status
            a_finalizer_holds_a_deleted_object
            a_deletion_for_another_object_of_the_name_is_refused
            lists_select_by_label_and_field
            long_lists_come_in_pages
            a_watch_continues_where_a_list_ended
            an_object_enters_and_leaves_a_selecting_watch
            a_watcher_sees_all_there_is_and_then_changes
            streaming_lists_mark_the_end_of_what_existed
            schema_and_rules_of_our_kinds_are_enforced
            unknown_fields_are_dropped
            a_dry_run_changes_nothing
            a_lease_is_replaced_on_its_version_only
        }
    };
}

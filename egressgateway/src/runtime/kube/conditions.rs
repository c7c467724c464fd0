use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};

/// Fills in when each condition took its status: kept from `existing` where the status is the same,
/// else `now`.
pub(crate) fn stamp(conditions: &mut [Condition], existing: &[Condition], now: Timestamp) {
    for condition in conditions {
        let before = existing
            .iter()
            .find(|before| before.type_ == condition.type_ && before.status == condition.status);
        condition.last_transition_time =
            before.map_or(Time(now), |before| before.last_transition_time.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn condition(kind: &str, status: &str, second: i64) -> Condition {
        Condition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: "Because".to_owned(),
            message: String::new(),
            observed_generation: None,
            last_transition_time: Time(Timestamp::from_second(second).unwrap()),
        }
    }

    #[test]
    fn the_time_of_transition_is_kept_as_long_as_the_status_is() {
        let existing = [
            condition("Ready", "True", 10),
            condition("Other", "True", 20),
        ];
        let mut next = [
            condition("Ready", "True", 0),
            condition("Other", "False", 0),
            condition("New", "True", 0),
        ];
        stamp(&mut next, &existing, Timestamp::from_second(99).unwrap());
        let times: Vec<i64> = next
            .iter()
            .map(|condition| condition.last_transition_time.0.as_second())
            .collect();
        assert_eq!(times, [10, 99, 99]);
    }
}

//! A service as an application registers it over the admin API: the keys of `[service.*]`, and how long it lasts.
//!
//! Not here: who may register (`admin/guard.rs`), and what becomes of it (`gossip/probe.rs`).

use std::time::Duration;

use super::{health::Whose, rules, service};
use crate::config::{
    Config, Lease,
    fault::{Fault, Place},
    host::Host,
    raw::{Entry, Raw, Table, Value},
    read::{Keys, Sheet},
    value::Setting,
};

/// What a registration lasts if it does not say.
const LEASE: Duration = Duration::from_secs(30);
/// Shorter ones would be renewed all the time.
const LEASE_MIN: Duration = Duration::from_secs(1);
/// Longer ones belong into the configuration.
const LEASE_MAX: Duration = Duration::from_secs(3_600);
/// Tables within tables of a request; a service has two.
const DEPTH_MAX: usize = 8;

/// Reads what is registered under `service` and `instance`, for the host of `config`.
///
/// # Errors
/// Everything that is wrong with it.
pub fn lease(
    name: &str,
    instance: &str,
    body: &serde_json::Value,
    config: &Config,
) -> Result<Lease, Vec<Fault>> {
    // Nothing of this host's environment is filled into what comes from outside.
    let host = Host {
        env: Box::new(|_| None),
        name: String::new(),
        address: None,
        cores: 1,
    };
    let sheet = Sheet::new(&host, std::path::PathBuf::new(), false, Vec::new());
    let place = Place {
        file: "the request".into(),
        line: 1,
        column: 1,
    };
    let table = match raw_of(body, &place, 0) {
        Some(Value::Table(table)) => table,
        _ => Table::new(),
    };
    let path = vec!["service".to_owned(), name.to_owned()];
    let named = |key: &str, word: &str| Entry {
        key: key.to_owned(),
        place: place.clone(),
        raw: Raw {
            value: Value::String(word.to_owned()),
            place: place.clone(),
        },
    };
    let said = Keys::new(&sheet, path.clone(), &table, place.clone(), &["allow"]);
    for key in ["service", "instance"] {
        if said.has(key) {
            said.wrong(key, "the request's path names it already", "leave it out");
        }
    }
    let mut whole = vec![named("service", name), named("instance", instance)];
    whole.extend(table.iter().cloned());
    let keys = Keys::new(&sheet, path, &whole, place.clone(), &["allow"]);
    let lasts: Duration = keys.or("lease", LEASE);
    if !(LEASE_MIN..=LEASE_MAX).contains(&lasts) {
        keys.wrong(
            "lease",
            format!("{} is out of range", lasts.show()),
            format!("use {} to {}", LEASE_MIN.show(), LEASE_MAX.show()),
        );
    }
    let service = service::service(name, &keys, &config.node, Whose::Leased);
    if let Some(service) = &service {
        rules::judge_leased(&keys, service, config);
    }
    keys.done();
    let mut faults = sheet.into_parts().faults;
    if !body.is_object() {
        faults.clear();
        faults.push(Fault {
            place,
            key: String::new(),
            what: "it is no JSON object".to_owned(),
            fix: "send one like {\"port\": 8080, \"lease\": \"30s\"}".to_owned(),
        });
    }
    match service {
        Some(service) if faults.is_empty() => Ok(Lease { service, lasts }),
        _ => Err(faults),
    }
}

/// JSON as a configuration file would have it; a null counts as not written.
fn raw_of(value: &serde_json::Value, place: &Place, depth: usize) -> Option<Value> {
    use serde_json::Value as Json;
    let inner = |value: &Json| {
        let value = raw_of(value, place, depth + 1)?;
        let place = place.clone();
        Some(Raw { value, place })
    };
    if depth > DEPTH_MAX {
        return None;
    }
    Some(match value {
        Json::Null => return None,
        Json::Bool(flag) => Value::Bool(*flag),
        Json::Number(number) => match number.as_i128() {
            Some(whole) => Value::Integer(whole),
            None => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::String(text.clone()),
        Json::Array(items) => Value::List(items.iter().filter_map(inner).collect()),
        Json::Object(entries) => {
            let entry = |(key, value): (&String, &Json)| {
                Some(Entry {
                    key: key.clone(),
                    place: place.clone(),
                    raw: inner(value)?,
                })
            };
            Value::Table(entries.iter().filter_map(entry).collect())
        }
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(text: &str) -> Config {
        crate::config::parse("test", text)
            .map_err(|faults| faults.to_string())
            .expect("no faults")
            .config
    }

    #[test]
    fn a_registration_has_the_keys_of_a_service() {
        let config = config("[node]\nid = \"web-1\"\nadvertise = \"10.0.0.5\"\n");
        let body = json!({
            "port": 8080, "weight": 7, "tags": {"v": "2"}, "lease": "1m", "capacity": null,
            "check": {"http": "/up", "status": [200, "300-302"], "fall": 1},
        });
        let lease = lease("shop", "blue", &body, &config).expect("no faults");
        assert_eq!(lease.lasts, Duration::from_secs(60));
        let service = lease.service;
        assert_eq!((&*service.service, &*service.instance), ("shop", "blue"));
        assert_eq!(service.address.to_string(), "10.0.0.5:8080");
        assert_eq!(service.weight.get(), 7);
        assert_eq!(
            service.check.map(|check| (check.fall, check.rise)),
            Some((1, 2))
        );
    }

    #[test]
    fn what_may_not_be_registered_is_told_with_all_its_faults() {
        let config = config("");
        for (body, keys) in [
            (json!([]), &[""][..]),
            (json!({}), &["port"]),
            (json!({"port": 0, "colour": 1}), &["colour", "port"]),
            (json!({"port": 1, "lease": "1ms"}), &["lease"]),
            (json!({"port": 1, "lease": 30}), &["lease"]),
            (json!({"port": 1, "instance": "x"}), &["instance"]),
            (
                json!({"port": 1, "check": {"exec": ["/bin/true"]}}),
                &["check.exec"],
            ),
            (
                json!({"port": 1, "tags": {"a": "${env:HOME}"}}),
                &["tags.a"],
            ),
            (json!({"port": 7070}), &["port"]),
        ] {
            let faults = lease("shop", "one", &body, &config).expect_err(&body.to_string());
            let mut found: Vec<&str> = faults
                .iter()
                .map(|fault| fault.key.trim_start_matches("service.shop."))
                .collect();
            found.sort_unstable();
            assert_eq!(found, keys, "{body}: {faults:?}");
        }
        let faults = lease("Shop", "a/b", &json!({"port": 1}), &config).expect_err("names");
        assert_eq!(faults.len(), 2, "{faults:?}");
    }
}

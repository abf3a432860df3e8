//! The ring's hostfile: for each rank the addresses it listens at, as JSON.

use std::collections::HashMap;
use std::path::Path;

use serde_json::Value;

use super::Address;
use crate::error::{Error, Result, Status, fail};

/// For each rank its addresses, one per connection: `[["10.0.0.1:5000"], ["10.0.0.2:5000"]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hostfile(pub Vec<Vec<Address>>);

impl Hostfile {
    /// Reads and checks a file; every error names it.
    pub fn read(path: &str) -> Result<Hostfile> {
        let text = std::fs::read_to_string(Path::new(path)).map_err(|e| {
            Error::new(Status::Config, format!("cannot read the hostfile {path:?}: {e}"))
        })?;
        Hostfile::parse(&text).map_err(|e| e.at(format_args!("hostfile {path:?}")))
    }

    /// Reads and checks its text. An empty text, like an empty list, is a world of one.
    pub fn parse(text: &str) -> Result<Hostfile> {
        const EXPECTED: &str = r#"expected a list with, per rank, a list of "host:port""#;
        if text.trim().is_empty() {
            return Ok(Hostfile(Vec::new()));
        }
        let json: Value = match serde_json::from_str(text) {
            Ok(json) => json,
            Err(e) => fail!(Config, "not JSON: {e}; {EXPECTED}"),
        };
        let Value::Array(ranks) = json else {
            fail!(Config, "{EXPECTED}, found {}", kind(&json));
        };
        let mut hosts: Vec<Vec<Address>> = Vec::with_capacity(ranks.len());
        let mut owners: HashMap<Address, usize> = HashMap::new();
        for (rank, entry) in ranks.iter().enumerate() {
            let Value::Array(addresses) = entry else {
                fail!(Config, "rank {rank}: {EXPECTED}, found {}", kind(entry));
            };
            let mut host = Vec::with_capacity(addresses.len());
            for address in addresses {
                let Value::String(address) = address else {
                    fail!(Config, "rank {rank}: {EXPECTED}, found {}", kind(address));
                };
                let address: Address =
                    address.parse().map_err(|e: Error| e.at(format_args!("rank {rank}")))?;
                if let Some(other) = owners.insert(address.clone(), rank) {
                    fail!(Config, "ranks {other} and {rank} both have the address {address}");
                }
                host.push(address);
            }
            hosts.push(host);
        }
        for (rank, host) in hosts.iter().enumerate() {
            if host.is_empty() && hosts.len() > 1 {
                fail!(Config, "rank {rank} has no address; {EXPECTED}");
            }
            if host.len() != hosts[0].len() {
                fail!(
                    Config,
                    "rank {rank} has {} addresses, rank 0 has {}; all ranks need the same number",
                    host.len(),
                    hosts[0].len()
                );
            }
        }
        Ok(Hostfile(hosts))
    }
}

pub(super) fn kind(json: &Value) -> &'static str {
    match json {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn well_formed_hostfiles_are_read() {
        let one = Hostfile::parse(r#"[["a:1", "a:2"], ["[::1]:1", "10.0.0.1:2"]]"#).unwrap();
        assert_eq!(one.0.len(), 2);
        assert_eq!(one.0[1][0], Address::new("::1", 1));
        for empty in ["", " \n", "[]"] {
            assert_eq!(Hostfile::parse(empty).unwrap().0.len(), 0);
        }
    }

    #[test]
    fn malformed_hostfiles_say_what_and_where() {
        for (text, why) in [
            ("{", "not JSON"),
            ("[[\"a:1\"],", "line 1"),
            ("{}", "found an object"),
            ("null", "found null"),
            ("[1]", "rank 0: expected"),
            ("[[\"a:1\"], \"b:1\"]", "rank 1: expected"),
            ("[[\"a:1\"], [7]]", "found a number"),
            ("[[\"a:1\"], [\"b\"]]", "rank 1: \"b\" has no port"),
            ("[[\"a:1\"], []]", "rank 1 has no address"),
            ("[[\"a:1\"], [\"b:1\", \"b:2\"]]", "rank 1 has 2 addresses, rank 0 has 1"),
            ("[[\"a:1\"], [\"b:1\"], [\"a:1\"]]", "ranks 0 and 2 both have the address a:1"),
        ] {
            let error = Hostfile::parse(text).unwrap_err();
            assert_eq!(error.status, Status::Config);
            assert!(error.message.contains(why), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = Hostfile::read("/no/such/file").unwrap_err();
        assert!(error.message.contains("/no/such/file"), "{error}");
    }
}

//! What host names stand for. The system's resolver waits for name servers as long as it likes, so it is
//! asked by a thread that can be left behind.

use std::net::SocketAddr;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use crate::config::Address;
use crate::error::{Result, fail};
use crate::health::Health;
use crate::wait::Deadline;

/// 50 ms: how late a failure may be noticed.
const LOOK: Duration = Duration::from_millis(50);

/// Every socket address that this one stands for, at least one; fails where the name's are not known in
/// time, or `health` fails first.
pub fn resolve(
    address: &Address,
    deadline: Deadline,
    health: Option<&Health>,
) -> Result<Vec<SocketAddr>> {
    match address.ip() {
        Some(_) => address.resolve(),
        None => resolve_by(Address::resolve, address, deadline, health),
    }
}

fn resolve_by(
    resolver: impl FnOnce(&Address) -> Result<Vec<SocketAddr>> + Send + 'static,
    address: &Address,
    deadline: Deadline,
    health: Option<&Health>,
) -> Result<Vec<SocketAddr>> {
    let (tell, told) = sync_channel(1);
    let wanted = address.clone();
    crate::thread::spawn("mlxd-lookup", move || {
        // Nobody hears it after the deadline.
        let _ = tell.send(resolver(&wanted));
    })?;
    loop {
        match told.recv_timeout(deadline.left().map_or(LOOK, |left| left.min(LOOK))) {
            Ok(found) => return found,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                fail!(Internal, "the thread that looks up {address} is gone")
            }
        }
        health.map_or(Ok(()), Health::check)?;
        if deadline.passed() {
            fail!(Timeout, "no name server has answered in time what the host of {address} is");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};

    use super::*;
    use crate::error::{Error, Status};

    /// A resolver that answers once the other half is gone.
    fn silent() -> (Sender<()>, impl FnOnce(&Address) -> Result<Vec<SocketAddr>> + Send) {
        let (never, answer) = channel();
        let resolver = move |_: &Address| {
            let _ = answer.recv();
            Ok(Vec::new())
        };
        (never, resolver)
    }

    #[test]
    fn names_and_numbers_are_found() {
        let port = |address| resolve(&address, Deadline::NEVER, None).unwrap()[0].port();
        assert_eq!(port(Address::new("127.0.0.1", 5)), 5);
        assert_eq!(port(Address::new("localhost", 6)), 6);
        let nowhere = resolve(&Address::new("no host", 1), Deadline::NEVER, None);
        assert_eq!(nowhere.unwrap_err().status, Status::Config);
    }

    #[test]
    fn a_resolver_that_does_not_answer_is_left_behind() {
        let (_never, silent) = silent();
        let soon = Deadline::after(Some(Duration::from_millis(20)));
        let address = Address::new("far", 1);
        let error = resolve_by(silent, &address, soon, None).unwrap_err();
        assert_eq!(error.status, Status::Timeout);
        assert!(error.message.contains("far:1"), "{error}");
    }

    #[test]
    fn a_failure_ends_the_wait() {
        let (_never, silent) = silent();
        let health = Health::new().unwrap();
        health.fail(Error::new(Status::Aborted, "enough"));
        let error = resolve_by(silent, &Address::new("far", 1), Deadline::NEVER, Some(&health))
            .unwrap_err();
        assert_eq!(error.message, "enough");
    }
}

//! Values as they are written, read and shown.

use std::time::Duration;

use super::*;
use crate::config::Network;

fn read<T: Setting>(text: &str) -> Result<T, Wrong> {
    T::read(&Value::String(text.to_owned()))
}

#[test]
fn durations_are_read_and_shown_with_their_units() {
    for (written, shown) in [
        ("250ms", "\"250ms\""),
        ("1.5s", "\"1500ms\""),
        ("1m30s", "\"90s\""),
        ("5m", "\"5m\""),
        ("0s", "\"0s\""),
        ("10us", "\"10us\""),
    ] {
        assert_eq!(read::<Duration>(written).unwrap().show(), shown);
    }
    for wrong in ["", "5", "s", "5 parsecs", "-1s", "1..5s", "9999d"] {
        assert!(read::<Duration>(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn shares_rates_and_sizes_survive_being_shown() {
    assert_eq!(read::<Share>("12.5%").unwrap().show(), "\"12.5%\"");
    assert_eq!(read::<Rate>("30/m").unwrap(), Rate(0.5));
    assert_eq!(read::<Bytes>("64KiB").unwrap(), Bytes(65_536));
    assert_eq!(Bytes(65_536).show(), "\"64KiB\"");
    assert!(read::<Share>("120%").is_err());
    assert!(read::<Bytes>("64").is_err());
}

#[test]
fn a_network_with_stray_bits_is_refused_with_the_right_one() {
    let wrong = read::<Network>("172.26.64.9/20").unwrap_err();
    assert!(wrong.fix.contains("172.26.64.0/20"), "{wrong:?}");
    assert_eq!(read::<Network>("10.0.0.1").unwrap().bits, 32);
    assert_eq!(read::<Network>("::/0").unwrap().bits, 0);
}

#[test]
fn references_are_filled_in_or_refused() {
    let env = |name: &str| (name == "PORT").then(|| "80".to_owned());
    assert_eq!(
        fill("a:${env:PORT}", env).unwrap(),
        ("a:80".to_owned(), vec!["PORT".to_owned()])
    );
    for wrong in ["${env:NONE}", "${PORT}", "${env:PORT"] {
        assert!(fill(wrong, env).is_err(), "{wrong}");
    }
}

#[test]
fn seeds_may_leave_their_port_out() {
    assert_eq!(
        host_and_port("10.0.0.1", Some(7946)).unwrap(),
        ("10.0.0.1".into(), 7946)
    );
    assert_eq!(
        host_and_port("fd00::1", Some(7946)).unwrap(),
        ("fd00::1".into(), 7946)
    );
    assert_eq!(
        host_and_port("[fd00::1]:9", None).unwrap(),
        ("fd00::1".into(), 9)
    );
    assert_eq!(host_and_port("seed:9", None).unwrap(), ("seed".into(), 9));
    assert!(host_and_port("seed", None).is_err());
    assert!(host_and_port("two words", Some(1)).is_err());
}

use rand::{SeedableRng, rngs::SmallRng};

use super::*;

fn headers(list: &[(&'static str, &'static str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in list {
        map.append(*name, HeaderValue::from_static(value));
    }
    map
}

fn strip(map: &mut HeaderMap) {
    strip_hop_by_hop(map, Present::of(map), false);
}

fn told(map: &mut HeaderMap, origin: &Origin, host: &HeaderValue) {
    let via = HeaderValue::from_static("1.1 starling-web-1");
    if let Some(words) = introduce(map, Present::of(map), origin, host, &via) {
        words.add_to(map);
    }
}

fn id_of(map: &mut HeaderMap, rng: &mut SmallRng) -> HeaderValue {
    request_id(map, Present::of(map), rng)
}

#[test]
fn hop_by_hop_headers_end_here() {
    let mut map = headers(&[
        ("connection", "close, x-secret"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "keep-alive"),
        ("proxy-authorization", "Basic eA=="),
        ("transfer-encoding", "chunked"),
        ("te", "gzip, trailers"),
        ("upgrade", "websocket"),
        ("x-secret", "1"),
        ("x-kept", "2"),
    ]);
    strip(&mut map);
    let mut left: Vec<_> = map
        .iter()
        .map(|(n, v)| (n.as_str(), v.to_str().unwrap()))
        .collect();
    left.sort_unstable();
    assert_eq!(left, [("te", "trailers"), ("x-kept", "2")]);
}

#[test]
fn words_about_the_connection_go_and_take_nothing_with_them() {
    for word in ["close", "Keep-Alive", "close, keep-alive"] {
        let mut map = headers(&[("connection", word), ("host", "a"), ("x-kept", "2")]);
        strip(&mut map);
        assert_eq!(map.len(), 2, "{word}: {map:?}");
    }
}

#[test]
fn one_callers_connections_share_what_was_made_for_them() {
    let origins = Origins::default();
    let ip = Some([127, 0, 0, 1].into());
    let first = origins.of(ip, false, false, false);
    assert!(Rc::ptr_eq(&first, &origins.of(ip, false, false, false)));
    assert!(first.is_local);
    // Who came another way is not the same caller, whatever its address.
    let told = origins.of(ip, true, false, false);
    assert!(!told.is_local);
    assert!(origins.of(ip, false, true, false).trusted);
    assert_eq!(origins.of(ip, false, false, true).scheme, "https");
    // There are more callers than slots; none is taken for another.
    for last in (0..=255).chain(0..=255) {
        let ip = IpAddr::from([127, 0, 0, last]);
        let origin = origins.of(Some(ip), false, false, false);
        assert_eq!(origin.ip, Some(ip));
        assert_eq!(origin.forwarded_for, ip.to_string());
    }
}

#[test]
fn introductions_of_many_authorities_and_both_protocols_are_not_mixed_up() {
    let origin = Origin::new(None, false, false, false);
    let vias = ["1.1 starling-a", "2 starling-a"].map(HeaderValue::from_static);
    for number in (0..100).chain(0..100) {
        let authority = format!("s{number}.mesh");
        let host = HeaderValue::try_from(&authority).unwrap();
        for via in &vias {
            let mut map = HeaderMap::new();
            origin.introduction(&host, via).unwrap().add_to(&mut map);
            let expected = format!("for=unknown;host=\"{authority}\";proto=http");
            assert_eq!(map[FORWARDED], expected);
            assert_eq!(map[VIA], via);
        }
        assert_eq!(origin.host(&authority), Some(host));
    }
}

#[test]
fn connection_cannot_name_away_the_host_or_the_length() {
    let mut map = headers(&[
        ("connection", "host, content-length"),
        ("host", "a"),
        ("content-length", "3"),
    ]);
    strip(&mut map);
    assert_eq!(map["host"], "a");
    assert_eq!(map["content-length"], "3");
}

#[test]
fn an_untrusted_callers_forwarding_headers_are_dropped() {
    let mut map = headers(&[
        ("x-forwarded-for", "6.6.6.6"),
        ("forwarded", "for=6.6.6.6"),
        ("x-forwarded-host", "evil"),
    ]);
    told(
        &mut map,
        &Origin::new(Some([10, 0, 0, 1].into()), false, false, false),
        &HeaderValue::from_static("payments.mesh"),
    );
    assert_eq!(map["x-forwarded-for"], "10.0.0.1");
    assert_eq!(
        map["forwarded"],
        "for=10.0.0.1;host=\"payments.mesh\";proto=http"
    );
    assert_eq!(map["x-forwarded-host"], "payments.mesh");
}

#[test]
fn a_trusted_callers_forwarding_headers_are_added_to() {
    let mut map = headers(&[
        ("x-forwarded-for", "6.6.6.6"),
        ("x-forwarded-proto", "https"),
    ]);
    told(
        &mut map,
        &Origin::new(Some([10, 0, 0, 1].into()), false, true, false),
        &HeaderValue::from_static("payments.mesh"),
    );
    let all: Vec<_> = map.get_all("x-forwarded-for").iter().collect();
    assert_eq!(all, ["6.6.6.6", "10.0.0.1"]);
    assert_eq!(map["x-forwarded-proto"], "https");
}

#[test]
fn own_hops_are_counted_and_others_are_not() {
    let via = Via::new("web-1");
    let mut map = headers(&[
        ("via", "1.1 other, 1.1 starling-web-1"),
        ("via", "2 starling-web-12"),
    ]);
    assert_eq!(own_via_count(&map, &via.pseudonym), 1);
    add_via(&mut map, Version::HTTP_2, &via);
    assert_eq!(own_via_count(&map, &via.pseudonym), 2);
}

#[test]
fn a_sound_request_id_is_kept_and_a_bad_one_replaced() {
    let rng = &mut SmallRng::seed_from_u64(1);
    let mut map = headers(&[("x-request-id", "abc-1")]);
    assert_eq!(id_of(&mut map, rng), "abc-1");
    let mut map = headers(&[("x-request-id", "with space")]);
    let made = id_of(&mut map, rng);
    assert_eq!(made.len(), 32);
    assert_eq!(map["x-request-id"], made);
}

#[test]
fn split_cookies_are_joined() {
    let mut map = headers(&[("cookie", "a=1"), ("cookie", "b=2")]);
    join_cookies(&mut map, Present::COOKIE);
    assert_eq!(
        map.get_all("cookie").iter().collect::<Vec<_>>(),
        ["a=1; b=2"]
    );
}

#[test]
fn upgrades_need_both_headers() {
    assert!(is_upgrade(&headers(&[
        ("connection", "keep-alive, Upgrade"),
        ("upgrade", "websocket")
    ])));
    assert!(!is_upgrade(&headers(&[("upgrade", "h2c")])));
    assert!(!is_upgrade(&headers(&[("connection", "upgrade")])));
}

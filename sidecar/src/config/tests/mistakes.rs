//! Every kind of mistake in a configuration, and the answer it gets.

use super::read;

/// What is written, the line of the fault, its key, and a piece of what is said and of the fix.
type Mistake = (&'static str, u32, &'static str, &'static str, &'static str);

#[rustfmt::skip]
const MISTAKES: &[Mistake] = &[
    ("[node]\nzne = \"a\"", 2, "node.zne", "no such key", "did you mean \"zone\"?"),
    ("[nod]\nzone = \"a\"", 1, "nod", "no such key", "did you mean \"node\"?"),
    ("[upstream.p]\nsticky = { ttl = \"1h\" }", 2, "upstream.p.sticky", "does not say by what", "source_ip = true"),
    ("[upstream.p]\nsticky = { cookie = \"c\", source_ip = true }", 2, "upstream.p.sticky.source_ip", "by a cookie or by an address", "one of the two"),
    ("[upstream.p]\nsticky = { cookie = \"c;d\" }", 2, "upstream.p.sticky.cookie", "cannot be a cookie's name", "letters"),
    ("[upstream.p]\nsticky = { cookie = \"c\", ttl = \"0s\" }", 2, "upstream.p.sticky.ttl", "no time", "\"1ms\""),
    ("[upstream.db]\nprotocol = \"tcp\"\nlisten = \"127.0.0.1:1\"\nsticky = { cookie = \"c\" }", 4, "upstream.db.sticky.cookie", "sees no cookies", "source_ip = true"),
    ("[inbound]\nbind = \"0.0.0.0:7443\"", 1, "inbound", "not in this version", "remove it"),
    ("[upstream.p]\nprotocol = \"tls\"", 2, "upstream.p.protocol", "\"tls\" is not in this version", "remove it"),
    ("[upstream.p]\nprotocol = \"udp\"", 1, "upstream.p.listen", "needs a port of its own", "listen = \"127.0.0.1:7001\""),
    ("[upstream.p]\nprotocol = \"udp\"\nlisten = \"unix:/run/x.sock\"", 3, "upstream.p.listen", "Unix socket", "127.0.0.1:5300"),
    ("[upstream.p]\nprotocol = \"udp\"\nlisten = \"127.0.0.1:7946\"", 3, "upstream.p.listen", "taken by gossip.bind", "another port"),
    ("[upstream.p]\nprotocol = \"udp\"\nlisten = \"127.0.0.1:1\"\ntimeout = \"1s\"", 4, "upstream.p.timeout", "neither requests nor connections", "idle"),
    ("[upstream.p]\nprotocol = \"udp\"\nlisten = \"127.0.0.1:1\"\nudp = { max_flows = 2000000 }", 4, "upstream.p.udp.max_flows", "more than a host", "at most"),
    ("[upstream.p]\nprotocol = \"udp\"\nlisten = \"127.0.0.1:1\"\nudp = { repliez = 1 }", 4, "upstream.p.udp.repliez", "no such key", "\"replies\""),
    ("[upstream.p]\naccept_proxy_protocol = true", 2, "upstream.p.accept_proxy_protocol", "no listener of its own", "listen ="),
    ("[upstream.p]\nsend_proxy_protocol = \"v2\"", 2, "upstream.p.send_proxy_protocol", "only a tcp upstream", "X-Forwarded-For"),
    ("[upstream.p]\nprotocol = \"tcp\"\nlisten = \"127.0.0.1:1\"\nsend_proxy_protocol = \"v3\"", 4, "upstream.p.send_proxy_protocol", "unknown here", "did you mean \"v"),
    ("[upstream.p]\nudp = { replies = 1 }", 2, "upstream.p.udp", "only a udp upstream", "protocol = \"udp\""),
    ("[upstream.p]\n[[upstream.p.route]]\nname = \"x\"", 2, "upstream.p.route", "not in this version", "remove it"),
    ("[upstream.p]\nzones = { mode = \"waterfal\" }", 2, "upstream.p.zones.mode", "unknown here", "did you mean \"waterfill\"?"),
    ("[upstream.p]\nzones = { mode = \"ignore\", order = [\"a\"] }", 2, "upstream.p.zones.order", "says nothing", "mode = \"waterfill\""),
    ("[upstream.p]\nzones = { order = [\"a\", \"a\"] }", 2, "upstream.p.zones.order", "stands there twice", "once"),
    ("[upstream.p]\nbalance = \"consistent_hash\"", 2, "upstream.p.balance", "does not say by what", "key = \"header:x-user\""),
    ("[upstream.p]\nbalance = { policy = \"consistent_hash\" }", 2, "upstream.p.balance.key", "does not say by what", "\"cookie:NAME\""),
    ("[upstream.p]\nbalance = { policy = \"consistent_hash\", key = \"headers:x\" }", 2, "upstream.p.balance.key", "\"headers:x\" is no key", "\"header:NAME\""),
    ("[upstream.p]\nbalance = { policy = \"consistent_hash\", key = \"header:\" }", 2, "upstream.p.balance.key", "names no header", "\"header:NAME\""),
    ("[upstream.p]\nbalance = { policy = \"consistent_hash\", key = \"json:/user\" }", 2, "upstream.p.balance.key", "not in this version", "remove it"),
    ("[upstream.p]\nbalance = { policy = \"consistent_hash\", key = \"path\", table = \"maglef\" }", 2, "upstream.p.balance.table", "unknown here", "did you mean \"maglev\"?"),
    ("[upstream.p]\nbalance = { policy = \"random\", key = \"path\" }", 2, "upstream.p.balance.key", "only consistent_hash has one", "drop it"),
    ("[upstream.db]\nprotocol = \"tcp\"\nlisten = \"127.0.0.1:1\"\nbalance = { policy = \"consistent_hash\", key = \"cookie:a\" }", 4, "upstream.db.balance.key", "sees no cookie:a", "\"source_ip\""),
    ("[upstream.p]\nbalance = \"round_robbin\"", 2, "upstream.p.balance", "unknown here", "did you mean \"round_robin\"?"),
    ("[upstream.p]\ntimeout = 2", 2, "upstream.p.timeout", "2 has no unit", "\"2s\""),
    ("[upstream.p]\ntimeout = \"2 parsecs\"", 2, "upstream.p.timeout", "no unit that is known", "\"250ms\""),
    ("[upstream.p]\ntimeout = \"250ms\"\n[upstream.p.retry]\nper_try_timeout = \"0ms\"", 4, "upstream.p.retry.per_try_timeout", "no time", "drop the line to leave it the whole \"250ms\""),
    ("[upstream.p]\ntimeout = \"1s\"\nretry = { per_try_timeout = \"2s\" }", 3, "upstream.p.retry.per_try_timeout", "longer than the whole request's timeout \"1s\"", "make it shorter"),
    ("[upstream.p]\nretry = { budget = \"lots\" }", 2, "upstream.p.retry.budget", "not a budget", "\"20% + 3/s\""),
    ("[upstream.p]\nretry = { on = [\"gateway-eror\"] }", 2, "upstream.p.retry.on", "unknown", "did you mean \"gateway-error\"?"),
    ("[upstream.p]\nejection = { max_ejected = \"150%\" }", 2, "upstream.p.ejection.max_ejected", "not a share", "\"100%\""),
    ("[upstream.p]\nejection = { base = \"2m\" }", 2, "upstream.p.ejection.base", "longer than max", "shorter"),
    ("[upstream.p]\nlimits = { header_bytes = \"1KiB\" }", 2, "upstream.p.limits.header_bytes", "out of range", "\"8KiB\" to \"1MiB\""),
    ("[upstream.db]\nprotocol = \"tcp\"", 1, "upstream.db.listen", "needs a port of its own", "listen = \"127.0.0.1:7001\""),
    ("[upstream.db]\nprotocol = \"tcp\"\nlisten = \"127.0.0.1:1\"\nretry = { retries = 1 }", 4, "upstream.db.retry", "knows no requests", "drop it"),
    ("[upstream.p]\nlisten = \"localhost:7001\"", 2, "upstream.p.listen", "not an address", "\"127.0.0.1:7001\""),
    ("[upstream.p]\nlisten = \"127.0.0.1:7080\"", 2, "upstream.p.listen", "taken by outbound.http", "another port"),
    ("[upstream.p]\nlisten = \"0.0.0.0:7001\"", 2, "upstream.p.listen", "other hosts", "clients ="),
    ("[upstream.p]\nendpoints = [\"10.0.0.1\"]", 2, "upstream.p.endpoints", "has no port", "\"db.internal:5432\""),
    ("[upstream.p]\nendpoints = [\n  \"10.0.0.1:1\",\n  { adress = \"10.0.0.2:1\", address = \"10.0.0.3:1\" },\n]", 4, "upstream.p.endpoints[1].adress", "no such key", "did you mean \"address\"?"),
    ("[upstream.p]\nendpoints = [\"127.0.0.1:7080\"]", 2, "upstream.p.endpoints", "own outbound.http", "server's own address"),
    ("[upstream.p]\ncheck = { tcp = true }", 2, "upstream.p.check", "sidecar beside them", "endpoints"),
    ("[upstream.p]\nlisten = \"127.0.0.1:1\"\nlisten_tls = { cert = \"no.pem\" }", 3, "upstream.p.listen_tls.key", "not named", "key = \"server.key\""),
    ("[upstream.p]\nlisten = \"127.0.0.1:1\"\nlisten_tls = { cert = \"no.pem\", key = \"no.key\" }", 3, "upstream.p.listen_tls.cert", "there is no file", "create it"),
    ("[upstream.p]\nlisten_tls = { cert = \"no.pem\" }", 2, "upstream.p.listen_tls", "no listener", "add listen"),
    ("[upstream.p]\nlisten = \"127.0.0.1:1\"\nlisten_tls = { cert = \"no.pem\", key = \"no.key\", crl = \"no.crl\" }", 3, "upstream.p.listen_tls.crl", "none can be revoked", "client_ca"),
    ("[upstream.p]\nlisten = \"127.0.0.1:1\"\nlisten_tls = { cert = \"no.pem\", key = \"no.key\", min_version = \"1.1\" }", 3, "upstream.p.listen_tls.min_version", "unknown here", "\"1.2\""),
    ("[upstream.p]\nendpoints = [\"10.0.0.1:443\"]\ntls = { server_name = \"a.example\" }", 3, "upstream.p.tls.ca", "not named", "ca-certificates.crt"),
    ("[upstream.p]\nendpoints = [\"10.0.0.1:443\"]\ntls = { ca = \"no.pem\", server_name = \"a b\" }", 3, "upstream.p.tls.server_name", "no name that a certificate can have", "shop.internal"),
    ("[upstream.p]\nendpoints = [\"10.0.0.1:443\"]\ntls = { ca = \"no.pem\", cert = \"me.pem\" }", 3, "upstream.p.tls.cert", "its key is missing", "me.key"),
    ("[upstream.p]\nendpoints = [\"10.0.0.1:443\", \"a.example:443\"]\ntls = { ca = \"no.pem\" }", 3, "upstream.p.tls.server_name", "none can stand for all", "server_name ="),
    ("[upstream.Pay]\ntimeout = \"1s\"", 1, "upstream.Pay.service", "cannot be called by name", "lower-case"),
    ("[service.s]\nport = 8080\nweight = 0", 3, "service.s.weight", "0 is out of range", "drain it"),
    ("[service.s]\ntags = { a = \"b\" }", 1, "service.s.port", "does not say where", "port = 8080"),
    ("[service.s]\nport = 70000", 2, "service.s.port", "70000 is out of range", "from 1 to 65535"),
    ("[service.s]\nport = 8080\nprotocol = [\"http\", \"grpc\"]", 3, "service.s.protocol", "a list of protocols is not in this version", ""),
    ("[service.s]\nport = 8080\ncapacity = \"many\"", 3, "service.s.capacity", "not a rate", "\"500/s\""),
    ("[service.s]\nport = 8080\ncheck = { interval = \"1s\" }", 3, "service.s.check", "says nothing to try", "http = \"/healthz\""),
    ("[service.s]\nport = 8080\ncheck = { exec = [\"true\"] }", 3, "service.s.check.exec", "no program by its whole path", "/usr/local/bin"),
    ("[service.s]\nport = 8080\ncheck = { exec = [] }", 3, "service.s.check.exec", "no program", "/usr/local/bin"),
    ("[service.s]\nport = 8080\ncheck = { http = \"/up\", tcp = true }", 3, "service.s.check.tcp", "this one is http already", "keep"),
    ("[service.s]\nport = 8080\ncheck = { tcp = false }", 3, "service.s.check.tcp", "nothing to try", "tcp = true"),
    ("[service.s]\nport = 8080\ncheck = { tcp = true, method = \"GET\" }", 3, "service.s.check.method", "only an http check", "drop the line"),
    ("[service.s]\nport = 8080\ncheck = { http = \"/\", method = \"DELETE\" }", 3, "service.s.check.method", "unknown here", "\"GET\""),
    ("[service.s]\nport = 8080\ncheck = { http = \"/\", method = \"HEAD\", body = \"up\" }", 3, "service.s.check.body", "HEAD has no body", "drop one"),
    ("[service.s]\nport = 8080\ncheck = { http = \"/\", status = [200, \"299-200\"] }", 3, "service.s.check.status", "neither a status nor a range", "\"200-299\""),
    ("[service.s]\nport = 8080\ncheck = { http = \"/\", status = [] }", 3, "service.s.check.status", "lets no answer pass", "drop the line"),
    ("[service.s]\nport = 8080\ncheck = { http = \"/\", body = \"(up\" }", 3, "service.s.check.body", "no regular expression: unclosed group", "backslash"),
    ("[service.s]\nport = 8080\ncheck = { grpc = \"a b\" }", 3, "service.s.check.grpc", "not the name of a gRPC service", "\"pkg.Service\""),
    ("[service.s]\nport = 8080\ncheck = { ttl = \"10s\", rise = 2 }", 3, "service.s.check.rise", "tells by itself", "drop the line"),
    ("[service.s]\nport = 8080\ncheck = { ttl = \"2d\" }", 3, "service.s.check.ttl", "longer than a day", "heartbeats"),
    ("[upstream.p]\nendpoints = [\"10.0.0.1:1\"]\ncheck = { ttl = \"10s\" }", 3, "upstream.p.check.ttl", "no sidecar that it could tell", "exec"),
    ("[service.s]\nport = 8080\ncheck = { http = \"healthz\" }", 3, "service.s.check.http", "not a path", "\"/healthz\""),
    ("[service.a]\nservice = \"x\"\nport = 1\n[service.b]\nservice = \"x\"\nport = 1", 4, "service.b.instance", "stands at starling.toml:1:10 already", "its own name"),
    ("[service.s]\nport = 7070", 2, "service.s.port", "this sidecar's own admin.bind", "application's own port"),
    ("[service.s]\naddress = \"127.0.0.1:80\"\n[gossip]\nkey = \"${env:KEY}\"", 2, "service.s.address", "which is themselves", "[inbound]"),
    ("[gossip]\njoin = [\"10.0.0.1\"]", 1, "gossip.key", "anybody could join", "starling key new"),
    ("[gossip]\nbind = \"127.0.0.1:7946\"\njoin = [\"10.0.0.1\"]", 3, "gossip.join", "10.0.0.1:7946 cannot be reached", "0.0.0.0:7946"),
    ("[gossip]\nkey = \"secret\"", 2, "gossip.key", "not a gossip key", "starling key new"),
    ("[gossip]\nkey = \"file:/does/not/exist\"", 2, "gossip.key", "there is no file /does/not/exist", "create it"),
    ("[gossip]\nbind = \"127.0.0.1:7946\"\nprofile = \"slow\"", 3, "gossip.profile", "\"slow\" is unknown", "\"fast\", \"calm\""),
    ("[admin]\nbind = \"0.0.0.0:7070\"", 1, "admin.token", "has no token", "token ="),
    ("[admin]\ntoken = \"short\"", 2, "admin.token", "at least 16", "starling key new"),
    ("[outbound]\nhttp = \"0.0.0.0:7080\"", 2, "outbound.http", "nobody is named who may", "clients ="),
    ("[outbound]\nclients = [\"10.0.0.1/8\"]", 2, "outbound.clients", "bits beyond its prefix", "\"10.0.0.0/8\""),
    ("[outbound]\nexternal_allow = [\"*.example.com:443\"]", 2, "outbound.external_allow", "not in this version", ""),
    ("[outbound]\ncontrol_headers = true", 2, "outbound.control_headers", "not in this version", "remove it"),
    ("[node]\nid = \"${env:NOBODY}\"", 2, "node.id", "no variable NOBODY", "set NOBODY"),
    ("[node]\nworkers = 1.5", 2, "node.workers", "not a whole number", "from 1 to 64"),
    ("[node]\nzone = \"a\"\nzone = \"b\"", 3, "", "duplicate", "once"),
    ("[node]\nzone = a", 2, "", "not TOML", "in \"quotes\""),
    ("node = 5", 1, "node", "a whole number is not a table", "[node]"),
];

#[test]
fn every_mistake_is_answered_with_its_line_key_and_fix() {
    for (text, line, key, what, fix) in MISTAKES {
        let faults = read(text).map(|_| ()).expect_err(text);
        let fault = faults.iter().next().unwrap();
        assert_eq!(faults.count(), 1, "{text}\n{faults}");
        assert_eq!(
            (fault.place.line, fault.key.as_str()),
            (*line, *key),
            "{text}\n{fault}"
        );
        assert!(fault.what.contains(what), "{text}\n{fault}");
        assert!(
            fault.fix.contains(fix) && !fault.fix.is_empty(),
            "{text}\n{fault}"
        );
    }
}

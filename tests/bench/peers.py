"""The four proxies, configured alike: one worker on one core, kept and reused connections, no access log, least loaded
endpoint first, one repeat elsewhere for what failed.

Not here: the load (loads.py), and what is behind (backends.py). Nobody adds headers beyond what it adds by itself:
Starling's and Envoy's are more than HAProxy's and nginx's.
"""

import json
import pathlib

import lab
from backends import NAME

PORT = 7001
NAMES = ["haproxy", "nginx", "envoy", "starling"]
TITLES = {"haproxy": "HAProxy", "nginx": "nginx", "envoy": "Envoy", "starling": "Starling", "splice": "HAProxy, splice"}
# nginx's module for TCP is a package of its own on Debian.
STREAM_MODULES = ["/usr/lib/nginx/modules/ngx_stream_module.so", "/usr/lib64/nginx/modules/ngx_stream_module.so"]
TYPES = "type.googleapis.com/envoy.extensions"


class Shape:
    """What a proxy is to be: what it accepts ("http1", "h2c", "tcp"), what it speaks ("http1", "h2c", "mtls1", "mtls2"),
    to which addresses, and how many clients it may have."""

    def __init__(self, front, back, endpoints, place, clients=4096):
        self.front, self.back, self.endpoints, self.place, self.clients = front, back, endpoints, place, clients

    @property
    def tls(self):
        return self.back in ("mtls1", "mtls2")

    @property
    def http2(self):
        return self.back in ("h2c", "mtls2")


def address_of(name, net):
    return f"{net}.{11 + [*NAMES, 'splice'].index(name)}"


def stream_module():
    return next((path for path in STREAM_MODULES if pathlib.Path(path).is_file()), None)


def lacks(name, shape, programs):
    """Why a proxy cannot be what the shape asks, or None."""
    program = "haproxy" if name == "splice" else name
    if not programs[program]:
        return f"{TITLES[name]} is not installed"
    if name == "nginx" and shape.http2:
        return "nginx speaks no HTTP/2 upstream"
    if name == "nginx" and shape.front == "tcp" and not stream_module():
        return "nginx has no stream module here (Debian: apt-get install libnginx-mod-stream)"
    return None


def start(processes, name, programs, shape, net, cores):
    """A running proxy; its `target` is where it listens."""
    me, place = address_of(name, net), processes.scratch
    program = "haproxy" if name == "splice" else name
    written = {
        "haproxy": haproxy,
        "splice": lambda me, shape: haproxy(me, shape, splice=True),
        "nginx": lambda me, shape: nginx(me, shape, place),
        "envoy": envoy,
        "starling": starling,
    }[name](me, shape)
    file = place / f"{name}.{'json' if name == 'envoy' else 'toml' if name == 'starling' else 'conf'}"
    file.write_text(written)
    words = {
        "haproxy": [programs["haproxy"], "-db", "-f", str(file)],
        "nginx": [programs["nginx"], "-c", str(file), "-p", str(place)],
        "envoy": [programs["envoy"], "-c", str(file), "--concurrency", "1", "--disable-hot-restart", "-l", "error"],
        "starling": [programs["starling"], "agent", "--config", str(file)],
    }[program]
    child = processes.start(f"{name}-proxy", words, cores)
    child.target = f"{me}:{PORT}"
    lab.await_port(child.target, child)
    return child


# ---- HAProxy --------------------------------------------------------------------------------------------------------


def haproxy(me, shape, splice=False):
    more = ""
    if shape.tls:
        more = f" ssl crt {shape.place}/client-and-key.pem ca-file {shape.place}/ca.pem verify required sni str({NAME})"
        more += f" verifyhost {NAME} ssl-min-ver TLSv1.3 alpn {'h2' if shape.http2 else 'http/1.1'}"
    elif shape.http2:
        more = " proto h2"
    servers = "\n".join(f"    server s{n} {address}{more}" for n, address in enumerate(shape.endpoints))
    http = """    option http-keep-alive
    http-reuse always
    retry-on conn-failure empty-response 502 503 504
"""
    # The checks of a bind are those of its protocol, so h2c is said and not guessed.
    bind = f"bind {me}:{PORT}" + (" proto h2" if shape.front == "h2c" else "")
    # It would insist on two descriptors for each client at once, where idle ones need one.
    return f"""global
    nbthread 1
    maxconn {shape.clients + 1000}
    no strict-limits
defaults
    mode {'tcp' if shape.front == 'tcp' else 'http'}
    maxconn {shape.clients + 1000}
    timeout connect 1s
    timeout client 300s
    timeout server 300s
    retries 3
    option redispatch 1
{'    option splice-response' if splice else ''}
{'' if shape.front == 'tcp' else http}
frontend front
    {bind}
    default_backend back
backend back
    balance leastconn
{servers}
"""


# ---- nginx ----------------------------------------------------------------------------------------------------------


def nginx(me, shape, place):
    servers = " ".join(f"server {address};" for address in shape.endpoints)
    general = f"""daemon off; master_process off; worker_processes 1; pid {place}/nginx-proxy.pid; error_log stderr;
worker_rlimit_nofile {shape.clients + 4096};
events {{ worker_connections {2 * shape.clients + 1024}; }}
"""
    if shape.front == "tcp":
        return f"""load_module {stream_module()};
{general}stream {{ access_log off; upstream back {{ least_conn; {servers} }}
  server {{ listen {me}:{PORT} backlog=4096; proxy_pass back; proxy_connect_timeout 1s; }} }}
"""
    tls = f"""proxy_ssl_certificate {shape.place}/client.pem; proxy_ssl_certificate_key {shape.place}/client.key;
    proxy_ssl_trusted_certificate {shape.place}/ca.pem; proxy_ssl_verify on; proxy_ssl_name {NAME};
    proxy_ssl_server_name on; proxy_ssl_protocols TLSv1.3;"""
    return f"""{general}http {{ access_log off; keepalive_requests 100000000; keepalive_timeout 600s;
  client_body_temp_path {place}/p1; proxy_temp_path {place}/p2; fastcgi_temp_path {place}/p3;
  uwsgi_temp_path {place}/p4; scgi_temp_path {place}/p5;
  upstream back {{ least_conn; {servers} keepalive 512; keepalive_requests 100000000; keepalive_timeout 600s; }}
  server {{ listen {me}:{PORT}{' http2' if shape.front == 'h2c' else ''} backlog=4096;
    location / {{ proxy_pass {'https' if shape.tls else 'http'}://back; proxy_http_version 1.1; proxy_set_header Connection "";
    proxy_connect_timeout 1s; proxy_max_temp_file_size 0;
    proxy_next_upstream error timeout http_502 http_503 http_504; proxy_next_upstream_tries 2;
    {tls if shape.tls else ''} }} }} }}
"""


# ---- Envoy ----------------------------------------------------------------------------------------------------------


def envoy(me, shape):
    host_of = lambda address: {"address": address.rsplit(":", 1)[0], "port_value": int(address.rsplit(":", 1)[1])}
    endpoints = [{"endpoint": {"address": {"socket_address": host_of(address)}}} for address in shape.endpoints]
    limits = {"max_connections": 100000, "max_pending_requests": 100000, "max_requests": 100000, "max_retries": 1000}
    cluster = {
        "name": "back",
        "type": "STATIC",
        "connect_timeout": "1s",
        "lb_policy": "LEAST_REQUEST",
        "outlier_detection": {"consecutive_5xx": 5, "consecutive_gateway_failure": 5, "enforcing_consecutive_gateway_failure": 100},
        "circuit_breakers": {"thresholds": [limits]},
        "load_assignment": {"cluster_name": "back", "endpoints": [{"lb_endpoints": endpoints}]},
    }
    if shape.http2:
        options = {"@type": f"{TYPES}.upstreams.http.v3.HttpProtocolOptions", "explicit_http_config": {"http2_protocol_options": {}}}
        cluster["typed_extension_protocol_options"] = {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options}
    if shape.tls:
        cluster["transport_socket"] = envoy_tls(shape)
    front = envoy_tcp() if shape.front == "tcp" else envoy_http()
    listener = {
        "name": "front",
        "address": {"socket_address": {"address": me, "port_value": PORT}},
        "filter_chains": [{"filters": [front]}],
    }
    return json.dumps({"static_resources": {"listeners": [listener], "clusters": [cluster]}}, indent=1)


def envoy_tls(shape):
    name = lambda name: {"filename": f"{shape.place}/{name}"}
    common = {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificates": [{"certificate_chain": name("client.pem"), "private_key": name("client.key")}],
        "validation_context": {
            "trusted_ca": name("ca.pem"),
            "match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": NAME}}],
        },
        "alpn_protocols": ["h2" if shape.http2 else "http/1.1"],
    }
    context = {"@type": f"{TYPES}.transport_sockets.tls.v3.UpstreamTlsContext", "common_tls_context": common, "sni": NAME}
    return {"name": "envoy.transport_sockets.tls", "typed_config": context}


def envoy_tcp():
    config = {"@type": f"{TYPES}.filters.network.tcp_proxy.v3.TcpProxy", "stat_prefix": "front", "cluster": "back"}
    return {"name": "envoy.filters.network.tcp_proxy", "typed_config": config}


def envoy_http():
    previous = "envoy.retry_host_predicates.previous_hosts"
    other_host = {"@type": f"{TYPES}.retry.host.previous_hosts.v3.PreviousHostsPredicate"}
    retry = {
        "retry_on": "connect-failure,refused-stream,reset,gateway-error",
        "num_retries": 2,
        "retry_host_predicate": [{"name": previous, "typed_config": other_host}],
        "host_selection_retry_max_attempts": 3,
    }
    route = {"match": {"prefix": "/"}, "route": {"cluster": "back", "timeout": "300s", "retry_policy": retry}}
    router = {"name": "envoy.filters.http.router", "typed_config": {"@type": f"{TYPES}.filters.http.router.v3.Router"}}
    manager = {
        "@type": f"{TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "front",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [router],
    }
    return {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}


# ---- Starling -------------------------------------------------------------------------------------------------------


def starling_host(id, me, zone="eu-1a", join=()):
    """The tables every sidecar has: gossip, admin and outbound are all on."""
    others = ", ".join(f'"{address}"' for address in join)
    return f"""[node]
id = "{id}"
zone = "{zone}"
advertise = "{me}"
workers = 1

[gossip]
bind = "{me}:7946"
join = [{others}]

[admin]
bind = "{me}:7070"

[outbound]
http = "{me}:7080"
"""


def starling(me, shape):
    endpoints = ", ".join(f'"{address}"' for address in shape.endpoints)
    lines = [starling_host("bench", me), "[upstream.bench]", f'listen = "{me}:{PORT}"', f"endpoints = [{endpoints}]"]
    lines.append(f"limits = {{ connections = {shape.clients + 1000} }}")
    if shape.front == "tcp":
        lines.append('protocol = "tcp"')
    else:
        lines.append('retry = { on = ["gateway-error"], retries = 1 }')
        lines.append(f'http = "{2 if shape.http2 else 1}"')
    if shape.tls:
        files = {"ca": "ca.pem", "cert": "client.pem", "key": "client.key"}
        named = ", ".join(f'{key} = "{shape.place}/{file}"' for key, file in files.items())
        lines.append(f'tls = {{ {named}, server_name = "{NAME}" }}')
    return "\n".join(lines) + "\n"

"""What stands behind every proxy: one nginx that answers in every protocol, or the example backend, and its certificates.

Not here: the proxies (peers.py) and the load (loads.py).
"""

import hashlib
import os
import subprocess
import sys

import lab

SMALL_BYTES = 1024
BODIES = {"1m": 1 << 20, "64m": 64 << 20}
NAME = "backend.bench"
# All of TLS is the same for all: the version, the suite, the curve and both certificates.
SUITE = "TLS_AES_128_GCM_SHA256"
PORTS = {"http1": 9001, "h2c": 9002, "mtls1": 9003, "mtls2": 9004}
# What a request says it came by: version of HTTP, of TLS, whether the client's certificate was verified, the suite.
ARRIVES_AS = {
    "http1": "HTTP/1.1|||",
    "h2c": "HTTP/2.0|||",
    "mtls1": f"HTTP/1.1|TLSv1.3|SUCCESS|{SUITE}",
    "mtls2": f"HTTP/2.0|TLSv1.3|SUCCESS|{SUITE}",
}


def certificates(place):
    """An authority, a server's and a client's certificate (P-256), made by the openssl command; False without it."""
    openssl = lab.find("openssl", "Debian: apt-get install openssl")
    if not openssl:
        return False

    def run(*words):
        done = subprocess.run([openssl, *words], cwd=place, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"openssl {words[0]} failed:\n{done.stderr}")

    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    run("req", "-x509", *new_key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "30", "-subj", "/CN=bench authority")
    for name, usage in (("server", "serverAuth"), ("client", "clientAuth")):
        subject = NAME if name == "server" else "client.bench"
        (place / f"{name}.ext").write_text(f"subjectAltName=DNS:{subject}\nextendedKeyUsage={usage}\n")
        run("req", "-new", *new_key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={subject}")
        signed = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "30", "-extfile", f"{name}.ext"]
        run("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.pem", *signed)
    both = (place / "client.pem").read_text() + (place / "client.key").read_text()
    (place / "client-and-key.pem").write_text(both)
    return True


def nginx_configuration(place, hosts, tls, workers):
    def server(kind, words=""):
        more = " http2" if kind in ("h2c", "mtls2") else ""
        more += " ssl" if kind in ("mtls1", "mtls2") else ""
        listens = " ".join(f"listen {host}:{PORTS[kind]}{more} backlog=4096;" for host in hosts)
        return f"""  server {{ {listens} {words}
    location / {{ default_type text/plain; return 200 "{'x' * SMALL_BYTES}"; }}
    location = /who {{ default_type text/plain; return 200 "$server_protocol|$ssl_protocol|$verified|$ssl_cipher"; }}
    location /body/ {{ alias {place}/; }} }}
"""

    ssl = f"""ssl_certificate {place}/server.pem; ssl_certificate_key {place}/server.key; ssl_protocols TLSv1.3;
    ssl_conf_command Ciphersuites {SUITE}; ssl_client_certificate {place}/ca.pem; ssl_verify_client on;"""
    servers = server("http1") + server("h2c")
    if tls:
        servers += server("mtls1", ssl) + server("mtls2", ssl)
    return f"""daemon off; worker_processes {workers}; pid {place}/nginx.pid; error_log stderr; worker_rlimit_nofile 20000;
events {{ worker_connections 8192; }}
http {{ access_log off; sendfile on; tcp_nopush on; keepalive_requests 100000000; keepalive_timeout 600s;
  http2_max_concurrent_streams 1000;
  client_body_temp_path {place}/t1; proxy_temp_path {place}/t2; fastcgi_temp_path {place}/t3;
  uwsgi_temp_path {place}/t4; scgi_temp_path {place}/t5;
  # The word is empty rather than NONE where nobody is asked for a certificate.
  map $ssl_client_verify $verified {{ default $ssl_client_verify; NONE ""; }}
{servers}}}
"""


class Backends:
    """Two addresses that answer in every protocol; what needs nginx is missing without it."""

    def __init__(self, processes, programs, net, cores):
        place = processes.scratch
        self.hosts = [f"{net}.1", f"{net}.2"]
        self.nginx = programs["nginx"] is not None
        self.tls = self.nginx and certificates(place)
        self.place = place
        self.sums = {}
        if self.nginx:
            for name, size in BODIES.items():
                self.sums[name] = write_body(place / name, size)
            file = place / "backend.conf"
            file.write_text(nginx_configuration(place, self.hosts, self.tls, max(1, min(4, len(cores)))))
            words = [programs["nginx"], "-c", str(file), "-p", str(place)]
            child = processes.start("nginx-backend", words, cores)
            for host in self.hosts:
                lab.await_port(f"{host}:{PORTS['http1']}", child)
            self.title, self.small = "nginx", "/"
        else:
            for number, host in enumerate(self.hosts):
                # It tells HTTP/1 and h2c apart by itself, so one port serves both.
                words = [programs["backend"], "--listen", f"{host}:{PORTS['http1']}"]
                child = processes.start(f"backend-{number}", words, cores)
                lab.await_port(f"{host}:{PORTS['http1']}", child)
            self.title, self.small = "examples backend", f"/bytes/{SMALL_BYTES}"

    def addresses(self, kind):
        port = PORTS[kind] if self.nginx else PORTS["http1"]
        return [f"{host}:{port}" for host in self.hosts]

    def body(self, name):
        return f"/body/{name}" if self.nginx else f"/bytes/{BODIES[name]}"

    def lacks(self, kind):
        """Why a protocol cannot be spoken to them, or None."""
        if kind in ("mtls1", "mtls2") and not self.tls:
            return "no TLS backend: needs nginx and openssl (Debian: apt-get install nginx-light openssl)"
        return None


def write_body(file, size):
    """Bytes without a pattern, and their SHA-256."""
    block = os.urandom(1 << 20)
    total = hashlib.sha256()
    with open(file, "wb") as out:
        for _ in range(size // len(block)):
            out.write(block)
            total.update(block)
    # nginx's worker may run as another user.
    file.chmod(0o644)
    return total.hexdigest()


def start_slow_ones(processes, program, net, cores, delays_ms):
    """Example backends, a process each, that wait so long before each answer."""
    children = []
    for number, delay in enumerate(delays_ms):
        children.append(start_one(processes, program, f"{net}.{101 + number}:9001", number, cores, delay))
    return children


def start_one(processes, program, address, number, cores, delay_ms):
    words = [program, "--listen", address, "--name", f"b{number}", "--delay-ms", str(delay_ms)]
    child = processes.start(f"backend-{number}", words, cores)
    lab.await_port(address, child)
    child.address = address
    return child

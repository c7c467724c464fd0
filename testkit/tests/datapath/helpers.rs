//! Helpers of connection tracking, by the example of FTP: the server opens the connection for data
//! in active mode, the pod in passive mode.

use std::{fs, io::Write as _};

use egressgateway_testkit::lab::{Families, Process, RuleTool};
use tempfile::NamedTempFile;

use crate::world::{CLIENT, DataPath, GATEWAYS, GOVERNED, World, lab};

/// Says hello, and sends the pod's address as data, by whichever way it is asked for.
const SERVER: &str = r"
import re, socket
control = socket.socket()
control.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
control.bind(('10.6.1.10', 21))
control.listen(5)
print('listening', flush=True)
while True:
    session, _ = control.accept()
    session.settimeout(10)
    try:
        session.sendall(b'220 hello\r\n')
        session.recv(1000)
        session.sendall(b'331 go on\r\n')
        asked = session.recv(1000).decode()
        port = re.search(r'PORT ([\d,]+)', asked)
        if port:
            *host, high, low = port.group(1).split(',')
            session.sendall(b'200 as you wish\r\n')
            data = socket.socket()
            data.settimeout(2)
            data.connect(('.'.join(host), int(high) * 256 + int(low)))
            data.sendall(data.getpeername()[0].encode())
        else:
            offer = socket.socket()
            offer.bind(('10.6.1.10', 0))
            offer.listen(1)
            offer.settimeout(5)
            number = offer.getsockname()[1]
            session.sendall(b'227 here (10,6,1,10,%d,%d)\r\n' % divmod(number, 256))
            data, peer = offer.accept()
            data.sendall(peer[0].encode())
        data.close()
        session.sendall(b'226 done\r\n')
    except OSError as error:
        try:
            session.sendall(b'425 ' + str(error).encode() + b'\r\n')
        except OSError:
            pass
    session.close()
";

const POD: &str = r"
import re, socket, sys
mode, own = sys.argv[1:]
control = socket.create_connection(('10.6.1.10', 21), 10)
control.recv(1000)
control.sendall(b'USER pod\r\n')
control.recv(1000)
if mode == 'active':
    offer = socket.socket()
    offer.bind((own, 0))
    offer.listen(1)
    number = offer.getsockname()[1]
    control.sendall(b'PORT %s,%d,%d\r\n' % (own.replace('.', ',').encode(), *divmod(number, 256)))
    control.recv(1000)
    print(control.recv(1000).decode().strip())
else:
    control.sendall(b'PASV\r\n')
    *host, high, low = re.search(r'\(([\d,]+)\)', control.recv(1000).decode()).group(1).split(',')
    data = socket.create_connection(('.'.join(host), int(high) * 256 + int(low)), 5)
    print(data.recv(1000).decode())
";

const HELPER: &str = "iptables-legacy -w -t raw -I PREROUTING -p tcp --dport 21 -j CT --helper ftp";

fn script(text: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

struct Ftp {
    world: World,
    pod: NamedTempFile,
    _server: (Process, NamedTempFile, NamedTempFile),
}

impl Ftp {
    fn start(path: &DataPath) -> Self {
        let world = World::start_in(path, lab().rules_by(RuleTool::IptablesLegacy), Families::V4)
            .with_usual_policy();
        let (text, log) = (script(SERVER), NamedTempFile::new().unwrap());
        let process = world
            .server
            .program("/usr/bin/env")
            .arg("python3")
            .arg(text.path())
            .log_to(log.path())
            .start()
            .unwrap();
        world.cluster.eventually("the server listens", || {
            let said = fs::read_to_string(log.path()).unwrap();
            if said.contains("listening") {
                Ok(())
            } else {
                Err(said)
            }
        });
        Self {
            world,
            pod: script(POD),
            _server: (process, text, log),
        }
    }

    fn ask(&self, mode: &str) -> String {
        let (pod, own) = (self.pod.path().display(), self.world.shop.v4());
        self.world
            .shop
            .run(&format!(
                "timeout 20 python3 {pod} {mode} {own} 2>&1 || true"
            ))
            .unwrap()
    }
}

pub(crate) fn what_a_server_opens_by_a_helper_ends_at_the_gateway_and_what_pods_open_works(
    path: &DataPath,
) {
    let ftp = Ftp::start(path);
    let (world, gateway) = (&ftp.world, ftp.world.cluster.lab.node(GATEWAYS[0]));
    let capture = world.cluster.lab.capture().unwrap();
    for node in [GATEWAYS[0], CLIENT] {
        world.cluster.lab.node(node).run(HELPER).unwrap();
        assert_eq!(
            ftp.ask("passive").trim(),
            gateway.v4().to_string(),
            "the data's source, with a helper up to {node}"
        );
        let active = ftp.ask("active");
        assert!(active.contains("425"), "{node}: {active}");
    }
    world.cluster.eventually("what ended is counted", || {
        let dropped = world.counted(GATEWAYS[0], "drop_no_gateway");
        if dropped > 0.0 {
            Ok(())
        } else {
            Err(format!("{dropped} dropped"))
        }
    });
    world.leaves_by(&world.shop, GOVERNED, GATEWAYS[0]);
    assert_eq!(world.leaks(&capture), [""; 0]);
}

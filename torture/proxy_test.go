package torture

import (
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/brevet-pki/brevet/store/postgres/postgrestest"
)

// A proxy is the network between one server and PostgreSQL. It can lose connections, stop transporting data, and lose a
// connection in the middle of a COMMIT.
type proxy struct {
	dir string // of its Unix socket

	mu          sync.Mutex
	target      string        // path of PostgreSQL's Unix socket
	flows       chan struct{} // closed while data is transported
	cutsCommits bool
	cuts        int // connections that were lost in the middle of a COMMIT
	open        map[net.Conn]bool
}

// socketName is the name of PostgreSQL's socket in its directory.
const socketName = ".s.PGSQL.5432"

func newProxy(t *testing.T, target string) *proxy {
	t.Helper()
	dir, err := os.MkdirTemp("", "proxy") // the path of t.TempDir is too long for a socket (unix(7))
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	p := &proxy{dir: dir, target: filepath.Join(target, socketName), flows: make(chan struct{}), open: map[net.Conn]bool{}}
	close(p.flows)
	l, err := net.Listen("unix", filepath.Join(dir, socketName))
	must(t, err)
	t.Cleanup(func() {
		_ = l.Close()
		p.setFlow(true)
		p.disconnect()
	})
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			go p.serve(client)
		}
	}()
	return p
}

// lead has new connections lead to another PostgreSQL.
func (p *proxy) lead(target string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = filepath.Join(target, socketName)
}

// setFlow sets whether data is transported. Data that arrives while it is not waits, as in a network that is cut: the sender
// repeats it until one end gives the connection up, and even then PostgreSQL may receive what was sent before.
func (p *proxy) setFlow(flows bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.flows:
		if !flows {
			p.flows = make(chan struct{})
		}
	default:
		if flows {
			close(p.flows)
		}
	}
}

func (p *proxy) waitForFlow() {
	p.mu.Lock()
	flows := p.flows
	p.mu.Unlock()
	<-flows
}

// cutCommits sets whether connections are lost at a COMMIT: before PostgreSQL receives it, or while PostgreSQL executes
// it.
func (p *proxy) cutCommits(cuts bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cutsCommits = cuts
}

// lost returns how many connections were lost at a COMMIT.
func (p *proxy) lost() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cuts
}

// disconnect loses all connections.
func (p *proxy) disconnect() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for conn := range p.open {
		_ = conn.Close() // the other end is closed by transport
	}
}

// serve transports data between a server and PostgreSQL until one of them closes the connection.
func (p *proxy) serve(client net.Conn) {
	defer p.track(client)()
	p.waitForFlow()
	p.mu.Lock()
	target := p.target
	p.mu.Unlock()
	database, err := net.Dial("unix", target)
	if err != nil {
		return
	}
	defer p.track(database)()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		p.transport(client, database, nil)
		_ = client.Close() // ends the other direction
	}()
	p.transport(database, client, p.meetsCommit)
	_ = database.Close()
	_ = client.Close()
	<-ended
}

// track notes an open connection, and returns a function that closes it.
func (p *proxy) track(conn net.Conn) func() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open[conn] = true
	return func() {
		_ = conn.Close()
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.open, conn)
	}
}

// errCut ends a connection.
var errCut = errors.New("the connection is lost")

// transport copies data to a connection until an end closes, or until meets returns an error.
func (p *proxy) transport(to, from net.Conn, meets func(data []byte, to, from net.Conn) error) {
	buffer := make([]byte, 64<<10)
	for {
		n, err := from.Read(buffer)
		p.waitForFlow()
		if n > 0 {
			if meets != nil && meets(buffer[:n], to, from) != nil {
				return
			}
			if _, err := to.Write(buffer[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// meetsCommit loses the connection if data has a COMMIT, and COMMITs are cut now.
func (p *proxy) meetsCommit(data []byte, to, from net.Conn) error {
	if !postgrestest.HasCommit(data) {
		return nil
	}
	p.mu.Lock()
	cuts := p.cutsCommits && rand.IntN(4) == 0
	if cuts {
		p.cuts++
	}
	p.mu.Unlock()
	if !cuts {
		return nil
	}
	_ = from.Close()
	if rand.IntN(2) == 0 { // PostgreSQL executes it
		_, _ = to.Write(data)
	}
	return errCut
}

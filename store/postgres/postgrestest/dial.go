package postgrestest

import (
	"context"
	"net"
	"sync"

	"github.com/jackc/pgx/v5/pgconn"
)

var _ pgconn.DialFunc = (*Cluster)(nil).Dial

// Dial returns a connection to the server, for pgconn.Config. When the client ends the session properly, PostgreSQL discards
// the session's state (DISCARD ALL), and its process serves the next session with the same parameters. A new process takes
// PostgreSQL tens of milliseconds. A connection that a client closes in any other way is closed.
func (c *Cluster) Dial(_ context.Context, network, address string) (net.Conn, error) {
	return &session{of: &c.processes, network: network, address: address}, nil
}

// processes are those of PostgreSQL that serve no session, by the parameters of the sessions that they can serve.
type processes struct {
	mu   sync.Mutex
	idle map[string][]*process
}

// process is a connection to a process of PostgreSQL.
type process struct {
	net.Conn
	parameters string // of its sessions; empty if it cannot serve another one
	greeting   []byte // the messages of the server at the begin of a session
}

// take returns a process, or nil if there is none.
func (p *processes) take(parameters string) *process {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := p.idle[parameters]
	if len(all) == 0 {
		return nil
	}
	p.idle[parameters] = all[:len(all)-1]
	return all[len(all)-1]
}

func (p *processes) put(one *process) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.idle == nil {
		p.idle = map[string][]*process{}
	}
	p.idle[one.parameters] = append(p.idle[one.parameters], one)
}

// end ends all processes.
func (p *processes) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, all := range p.idle {
		for _, one := range all {
			_ = one.Close() // PostgreSQL ends next
		}
	}
	p.idle = nil
}

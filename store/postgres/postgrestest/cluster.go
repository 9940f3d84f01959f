// Package postgrestest starts PostgreSQL servers for tests. Stores take their tables from [Cluster.Store], and their
// connections from [Cluster.Dial], where a test opens many of them: a test then waits neither for new tables nor for new
// processes of PostgreSQL.
package postgrestest

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/brevet-pki/brevet/store/postgres/cluster"
)

// Cluster is a running server with its own data. Its methods may be called concurrently, apart from those that end it.
type Cluster struct {
	*cluster.Cluster
	processes processes

	mu    sync.Mutex
	admin *pgx.Conn  // empties schemas; nil until the first one
	free  []*emptied // schemas that no test uses
}

// Start starts a server. It returns an error if PostgreSQL is not installed. Stop ends the server and removes its data, which
// are in memory if there is a file system for that.
func Start() (*Cluster, error) {
	c, err := cluster.StartIn(directory(), nil)
	if err != nil {
		return nil, err
	}
	return &Cluster{Cluster: c}, nil
}

// Schema creates an empty schema for a store, and returns a connection string.
func (c *Cluster) Schema(t testing.TB) string {
	t.Helper()
	connection, err := c.Cluster.Schema(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return connection
}

// Stop ends the server and removes its data.
func (c *Cluster) Stop() error {
	var err error
	c.processes.end()
	if c.admin != nil {
		err = c.admin.Close(context.Background())
	}
	return errors.Join(err, c.Cluster.Stop())
}

// Standby makes a standby of a running primary, as [cluster.Cluster.Standby] does.
func (c *Cluster) Standby(name string) (*Cluster, error) {
	s, err := c.Cluster.Standby(name)
	if err != nil {
		return nil, err
	}
	return &Cluster{Cluster: s}, nil
}

// Among returns the connection string of a database that any of several servers may have.
func Among(database string, servers ...*Cluster) string {
	all := make([]*cluster.Cluster, len(servers))
	for i, s := range servers {
		all[i] = s.Cluster
	}
	return cluster.Among(database, all...)
}

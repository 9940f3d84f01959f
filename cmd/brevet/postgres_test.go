package main

import (
	"context"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/brevet-pki/brevet/store/postgres/cluster"
)

// startPostgres VARIABLE… starts a PostgreSQL server with an empty database for each variable, which gets the connection string.
// The databases have the names of the variables. PGHOST and PGUSER are set for its tools, and its programs are in PATH. If
// the first argument is -archive, the variable after it gets a directory to which the server copies its WAL.
func startPostgres(ts *testscript.TestScript, _ bool, args []string) {
	c, err := cluster.Start(nil)
	ts.Check(err)
	ts.Defer(func() { _ = c.Stop() }) // it is temporary
	if args[0] == "-archive" {
		dir, err := c.Archiving()
		ts.Check(err)
		ts.Setenv(args[1], dir)
		args = args[2:]
	}
	for _, name := range args {
		connection, err := c.CreateDatabase(context.Background(), name)
		ts.Check(err)
		ts.Setenv(name, connection)
	}
	setTools(ts, c)
}

// setTools has the tools of PostgreSQL connect to a server.
func setTools(ts *testscript.TestScript, c *cluster.Cluster) {
	dir, bin, err := c.Tools()
	ts.Check(err)
	ts.Setenv("PGHOST", dir)
	ts.Setenv("PGUSER", "brevet")
	ts.Setenv("PATH", ts.Getenv("PATH")+":"+bin)
}

// recoverPostgres VARIABLE DATABASE DIRECTORY starts another PostgreSQL server with data that are set up for a recovery, and
// waits for its end. The variable gets the connection string of a database.
func recoverPostgres(ts *testscript.TestScript, _ bool, args []string) {
	c, err := cluster.Recover(ts.MkAbs(args[2]))
	ts.Check(err)
	ts.Defer(func() { _ = c.Stop() }) // it is temporary
	ts.Setenv(args[0], c.Connection(args[1]))
	setTools(ts, c)
}

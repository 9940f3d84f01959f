package server_test

import (
	"crypto/tls"
	"io"
	"net"
	"runtime"
	"testing"

	"golang.org/x/net/http2"

	"github.com/brevet-pki/brevet/server/servertest"
)

// A fleet that returns after an outage opens thousands of connections, and each waits for its certificate. The server
// and the clients of this test share the process, so the limit is for both ends of a connection.
func TestConnectionsTakeLittleMemory(t *testing.T) {
	const connections, maxEach = 400, 56 << 10
	w := servertest.New(t, ground, servertest.Options{})
	config := &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}, InsecureSkipVerify: true,
		Certificates: []tls.Certificate{*w.Operator.TLS(w)},
	}
	var held []net.Conn
	defer func() {
		for _, c := range held {
			_ = c.Close()
		}
	}()
	connect := func() {
		c := servertest.Must(tls.Dial("tcp", w.GRPC, config))(t)
		held = append(held, c)
		servertest.Must(io.WriteString(c, http2.ClientPreface+"\x00\x00\x00\x04\x00\x00\x00\x00\x00"))(t)
		servertest.Must(io.ReadFull(c, make([]byte, 9)))(t) // the server's settings: the connection is in use
	}
	connect()
	before := memoryInUse()
	for range connections {
		connect()
	}
	each := (memoryInUse() - before) / connections
	t.Logf("a connection takes %d bytes", each)
	if each > maxEach {
		t.Errorf("a connection takes %d bytes, more than %d", each, maxEach)
	}
}

// memoryInUse returns the memory of live objects and of stacks in bytes.
func memoryInUse() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}

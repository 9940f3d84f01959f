package postgrestest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"time"
)

// Messages of the protocol (PostgreSQL 15, section 55.7). A message of a server has a byte for its type, four for the length
// of the rest, and the rest.
const (
	protocol3       = 3 << 16 // the version in the first message of a client, with a minor version below
	readyForQuery   = 'Z'
	errorResponse   = 'E'
	parameterStatus = 'S'
	maxMessage      = 1 << 16 // bytes
)

var (
	terminate  = []byte{'X', 0, 0, 0, 4}
	discardAll = append([]byte{'Q', 0, 0, 0, 16}, "DISCARD ALL\x00"...)
	discarded  = append([]byte{'C', 0, 0, 0, 16}, "DISCARD ALL\x00"...)
	ready      = []byte{readyForQuery, 0, 0, 0, 5, 'I'} // outside of a transaction
)

// maxDiscard is how long a process may take to discard the state of a session.
const maxDiscard = 10 * time.Second

// session is a connection of a client. Its first message decides which process it takes.
type session struct {
	of               *processes
	network, address string

	reading sync.Mutex // held during a read from the process

	mu       sync.Mutex
	process  *process // nil before the first message
	greeting []byte   // what the client has not read of it
	isEnded  bool     // whether the client has sent Terminate
	isClosed bool
	read     time.Time // deadlines
	write    time.Time
}

// Write implements net.Conn.
func (s *session) Write(b []byte) (int, error) {
	p, err := s.begin(b)
	if err != nil {
		return 0, err
	}
	if p == nil { // the first message was sent
		return len(b), nil
	}
	return p.Write(b)
}

// begin returns the process that takes a message. It returns nil for the first message and the last one, which it handles.
func (s *session) begin(message []byte) (*process, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.isClosed || s.isEnded:
		return nil, net.ErrClosed
	case s.process == nil:
		return nil, s.connect(message)
	case s.process.parameters != "" && bytes.Equal(message, terminate):
		s.isEnded = true
		return nil, nil
	}
	return s.process, nil
}

// connect takes a process, or has PostgreSQL start one, and sends it the first message.
func (s *session) connect(first []byte) error {
	parameters := parametersOf(first)
	if parameters != "" {
		parameters = s.address + "\x00" + parameters
		if s.process = s.of.take(parameters); s.process != nil {
			s.greeting = s.process.greeting
			return s.setDeadlines()
		}
	}
	var d net.Dialer
	conn, err := d.DialContext(context.Background(), s.network, s.address) // the deadlines of the session end it
	if err != nil {
		return err
	}
	s.process = &process{Conn: conn}
	if err := s.setDeadlines(); err != nil {
		return err
	}
	if _, err := conn.Write(first); err != nil || parameters == "" {
		return err
	}
	if s.greeting, err = readUntilReady(conn); err != nil {
		return err
	}
	if bytes.HasSuffix(s.greeting, ready) {
		s.process.parameters, s.process.greeting = parameters, s.greeting
	}
	return nil
}

// parametersOf returns the parameters in the first message of a session, in an order of their own. It returns nothing for
// another message, such as one that cancels a statement.
func parametersOf(first []byte) string {
	if len(first) < 9 || binary.BigEndian.Uint32(first[4:])&^0xffff != protocol3 {
		return ""
	}
	fields := strings.Split(strings.TrimRight(string(first[8:]), "\x00"), "\x00")
	var all []string
	for pair := range slices.Chunk(fields, 2) {
		all = append(all, strings.Join(pair, "="))
	}
	slices.Sort(all)
	return strings.Join(all, "\x00")
}

// readUntilReady reads messages of the server until it is ready for a query, or refuses the session.
func readUntilReady(from io.Reader) ([]byte, error) {
	var all []byte
	for {
		begin := len(all)
		all = append(all, 0, 0, 0, 0, 0)
		if _, err := io.ReadFull(from, all[begin:]); err != nil {
			return all[:begin], err
		}
		size := int(binary.BigEndian.Uint32(all[begin+1:])) - 4
		if size < 0 || size > maxMessage {
			return nil, fmt.Errorf("a message of %d bytes while the server is not ready", size)
		}
		all = append(all, make([]byte, size)...)
		if _, err := io.ReadFull(from, all[begin+5:]); err != nil {
			return nil, err
		}
		if kind := all[begin]; kind == readyForQuery || kind == errorResponse {
			return all, nil
		}
	}
}

// Read implements net.Conn.
func (s *session) Read(b []byte) (int, error) {
	s.reading.Lock()
	defer s.reading.Unlock()
	p, n, err := s.next(b)
	if n > 0 || err != nil {
		return n, err
	}
	return p.Read(b)
}

// next copies what the client has not read of the greeting, or returns the process from which it is to read.
func (s *session) next(b []byte) (*process, int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.isClosed:
		return nil, 0, net.ErrClosed
	case s.isEnded:
		return nil, 0, io.EOF
	case s.process == nil:
		return nil, 0, errors.New("a read before the first message")
	}
	n := copy(b, s.greeting)
	s.greeting = s.greeting[n:]
	return s.process, n, nil
}

// Close implements net.Conn.
func (s *session) Close() error {
	s.mu.Lock()
	p, isEnded, isClosed := s.process, s.isEnded, s.isClosed
	s.isClosed = true
	s.mu.Unlock()
	switch {
	case isClosed:
		return net.ErrClosed
	case p == nil:
		return nil
	case !isEnded || s.discard(p) != nil:
		return p.Close()
	}
	s.of.put(p)
	return nil
}

// discard has a process discard the state of the session. It returns an error if the process cannot serve another one, because
// it is in a transaction or has sent what the client has not read.
func (s *session) discard(p *process) error {
	if err := p.SetDeadline(time.Unix(1, 0)); err != nil { // ends a read
		return err
	}
	s.reading.Lock()
	defer s.reading.Unlock()
	if err := p.SetDeadline(time.Now().Add(maxDiscard)); err != nil {
		return err
	}
	if _, err := p.Write(discardAll); err != nil {
		return err
	}
	response, err := readUntilReady(p)
	if err != nil {
		return err
	}
	for len(response) > 0 && response[0] == parameterStatus {
		response = response[1+binary.BigEndian.Uint32(response[1:]):]
	}
	if !bytes.Equal(response, slices.Concat(discarded, ready)) {
		return errors.New("the session does not end as expected")
	}
	return p.SetDeadline(time.Time{})
}

// SetDeadline implements net.Conn.
func (s *session) SetDeadline(at time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.read, s.write = at, at
	return s.setDeadlines()
}

// SetReadDeadline implements net.Conn.
func (s *session) SetReadDeadline(at time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.read = at
	return s.setDeadlines()
}

// SetWriteDeadline implements net.Conn.
func (s *session) SetWriteDeadline(at time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.write = at
	return s.setDeadlines()
}

// setDeadlines gives the deadlines to the process.
func (s *session) setDeadlines() error {
	if s.process == nil || s.isClosed {
		return nil
	}
	return errors.Join(s.process.SetReadDeadline(s.read), s.process.SetWriteDeadline(s.write))
}

// LocalAddr implements net.Conn.
func (s *session) LocalAddr() net.Addr { return &net.UnixAddr{Net: s.network} }

// RemoteAddr implements net.Conn.
func (s *session) RemoteAddr() net.Addr { return &net.UnixAddr{Net: s.network, Name: s.address} }

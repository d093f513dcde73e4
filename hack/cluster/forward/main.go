// forward passes every connection of a listening socket that it inherits as descriptor 3 on to an address. The
// socket may come from another network namespace: that is how the cluster is reached from outside its own.
package main

import (
	"fmt"
	"io"
	"net"
	"os"
)

const inherited = 3

func main() {
	if len(os.Args) != 2 {
		fail(fmt.Errorf("usage: forward ADDRESS:PORT"))
	}
	listener, err := net.FileListener(os.NewFile(inherited, "listener"))
	if err != nil {
		fail(err)
	}
	for {
		connection, err := listener.Accept()
		if err != nil {
			fail(err)
		}
		go forward(connection.(*net.TCPConn), os.Args[1])
	}
}

func forward(outside *net.TCPConn, address string) {
	defer outside.Close()
	dialed, err := net.Dial("tcp", address)
	if err != nil {
		return
	}
	inside := dialed.(*net.TCPConn)
	defer inside.Close()
	sent := make(chan struct{})
	go func() {
		pass(outside, inside)
		close(sent)
	}()
	pass(inside, outside)
	<-sent
}

// pass copies until one side has said all, and tells the other so.
func pass(from, to *net.TCPConn) {
	io.Copy(to, from)
	to.CloseWrite()
	from.CloseRead()
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "forward:", err)
	os.Exit(1)
}

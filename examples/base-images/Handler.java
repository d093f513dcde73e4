// The handler of the Java image: reads the message on standard input and prints it in upper case.
class Handler {
    public static void main(String[] arguments) throws Exception {
        System.out.println(new String(System.in.readAllBytes()).toUpperCase());
    }
}
